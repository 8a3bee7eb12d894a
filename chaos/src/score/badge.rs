//! A score as a picture for a README: one SVG that asks no network for anything. Pure.

use super::{Head, Safety};

/// The score in a line: `SAFE 93 · 41 faults · 200 seeds · worst gap 2.1 s (pause)`.
pub fn words(head: &Head) -> String {
    let Head { safety, score, cells: _, unknown, failed, faults, seeds, worst_gap } = head;
    let safety = match safety {
        Safety::Safe => "SAFE",
        Safety::Unsafe => "UNSAFE",
        Safety::Unknown => "UNKNOWN",
    };
    let mut words = format!("{safety} {score} · {faults} faults · {seeds} seeds");
    if let Some(gap) = worst_gap {
        words.push_str(&format!(" · worst gap {:.1} s ({})", gap.ms as f64 / 1000.0, gap.fault));
    }
    for (count, what) in [(failed, "failed"), (unknown, "unknown")] {
        if *count > 0 {
            words.push_str(&format!(" · {count} {what}"));
        }
    }
    words
}

/// Pixels of a letter, about; the text is stretched to what they come to, so that it fits in whatever font there is.
const LETTER: usize = 7;

/// The badge, as SVG.
pub fn svg(head: &Head) -> String {
    let (label, words) = ("chaos", words(head));
    let colour = match (head.safety, head.score) {
        (Safety::Unsafe, _) => "#b3261e",
        (Safety::Unknown, _) => "#6b7280",
        (Safety::Safe, 90..) => "#1a7f37",
        (Safety::Safe, _) => "#9a6700",
    };
    let (left, right) = (label.len() * LETTER + 12, words.chars().count() * LETTER + 12);
    let text = |x: usize, width: usize, what: &str| {
        let width = width - 12;
        format!(
            "<text x=\"{}\" y=\"14\" textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\">{what}</text>",
            x + 6
        )
    };
    // Names of kinds are small letters and dashes: nothing is to be escaped.
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"20\" role=\"img\" aria-label=\"{label}: \
         {words}\">\n<title>{label}: {words}</title>\n\
         <rect width=\"{width}\" height=\"20\" rx=\"3\" fill=\"{colour}\"/>\n\
         <path d=\"M3 0h{inner}v20h-{inner}a3 3 0 0 1-3-3v-14a3 3 0 0 1 3-3z\" fill=\"#374151\"/>\n\
         <g fill=\"#fff\" font-family=\"Verdana,DejaVu Sans,sans-serif\" font-size=\"11\">\n{}\n{}\n</g>\n</svg>\n",
        text(0, left, label),
        text(left, right, &words),
        width = left + right,
        inner = left - 3,
    )
}

#[cfg(test)]
mod tests {
    use super::super::Gap;
    use super::*;

    #[test]
    fn a_badge_says_the_line_and_asks_nobody() {
        let gap = Some(Gap { ms: 2149, fault: "pause".to_owned() });
        let (faults, seeds, unknown) = (41, 200, 0);
        let mut head = Head {
            safety: Safety::Safe,
            score: 93,
            cells: 200,
            unknown,
            failed: 0,
            faults,
            seeds,
            worst_gap: gap,
        };
        assert_eq!(words(&head), "SAFE 93 · 41 faults · 200 seeds · worst gap 2.1 s (pause)");
        let badge = svg(&head);
        assert!(badge.contains(&words(&head)) && badge.matches("http").count() == 1, "{badge}");
        head.unknown = 3;
        assert!(words(&head).ends_with(" · 3 unknown"), "{}", words(&head));
    }
}
