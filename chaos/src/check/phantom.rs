//! C2, no phantom.

use super::Checker;
use super::outcome::{Findings, Outcome};
use crate::facts::{Answer, Facts, Step};

pub(super) const CHECKER: Checker = Checker {
    id: "C2",
    name: "no-phantom",
    definition: "an application is given only what somebody published, byte for byte, to that terminal, and nothing \
                 whose publisher was told that it certainly is not stored",
    safety: true,
    check,
};

fn check(facts: &Facts) -> Outcome {
    let mut findings = Findings::default();
    let mut given = 0u64;
    for (at, terminal) in facts.terminals.iter().enumerate() {
        for stepped in &terminal.steps {
            let Step::Delivered(delivery) = stepped.step else { continue };
            given += 1;
            let (name, seq) = (facts.names.text(terminal.name), delivery.seq);
            let payload = facts.names.text(delivery.payload);
            let Some(push) = delivery.push.map(|push| &facts.pushes[push as usize]) else {
                findings.add(&[stepped.when], || {
                    format!("phantom: {name} was given {payload} as seq {seq}, which nobody had published")
                });
                continue;
            };
            if push.terminal != at as u32 {
                findings.add(&[push.asked, stepped.when], || {
                    let meant = facts.terminal(push.terminal);
                    format!("astray: {name} was given {payload} as seq {seq}, which was for {meant}")
                });
            } else if let Answer::Failed(when) = push.answer {
                findings.add(&[push.asked, when, stepped.when], || {
                    format!(
                        "{name} was given {payload}, whose publisher was told that it certainly is not stored"
                    )
                });
            }
        }
    }
    if given == 0 {
        return Outcome::unknown("no application was given anything");
    }
    findings.outcome(facts, format!("{given} given"))
}
