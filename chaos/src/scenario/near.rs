//! What somebody may have meant who wrote a name that is not there.

/// How alike two names must be, from 0 to 1, to be offered.
const ALIKE: f64 = 0.75;

/// The name most like this one, if one is like it at all.
pub fn nearest<'a>(name: &str, names: &[&'a str]) -> Option<&'a str> {
    let alike = |known: &&'a str| (strsim::jaro_winkler(name, known), *known);
    let best = names.iter().map(alike).max_by(|one, two| one.0.total_cmp(&two.0));
    best.filter(|(alike, _)| *alike >= ALIKE).map(|(_, known)| known)
}

/// A sentence about a name that is not there.
pub fn unknown(what: &str, name: &str, names: &[&str]) -> String {
    match nearest(name, names) {
        Some(meant) => format!("there is no {what} {name:?}; did you mean {meant:?}?"),
        None => format!("there is no {what} {name:?}; there are {}", names.join(", ")),
    }
}
