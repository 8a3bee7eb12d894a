//! The bytes of a push in a run: its name, and a filler that follows from it, so that bytes that were changed on their way
//! have another name.

/// A push's bytes: its name, and a filler that follows from it.
pub(crate) fn payload(name: &str, length: usize) -> Vec<u8> {
    let mut bytes = format!("{name} ").into_bytes();
    // The length is in it, so that bytes that were cut are not those of a shorter push.
    let filler =
        name.bytes().cycle().zip(length..).map(|(byte, at)| b'a' + ((usize::from(byte) + at) % 26) as u8);
    bytes.extend(filler.take(length.saturating_sub(bytes.len())));
    bytes
}

/// The name of the push that these are the bytes of; another name for bytes that were changed.
pub(crate) fn name(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).ok().and_then(|text| text.split_once(' '));
    match text.filter(|(name, _)| payload(name, body.len()) == body) {
        Some((name, _)) => name.to_owned(),
        None => format!("damaged: {} bytes", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_were_changed_get_another_name() {
        let bytes = payload("p1-2", 64);
        assert_eq!((bytes.len(), name(&bytes)), (64, "p1-2".to_owned()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(name(&changed), "p1-2", "{at}");
        }
        assert_ne!(name(&bytes[..63]), "p1-2");
    }
}
