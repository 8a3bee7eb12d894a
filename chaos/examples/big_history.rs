//! Writes a good history of about so many operations to its standard output, to measure checkers with:
//! `cargo run --release -p chaos --example big_history -- 1000000 > big.jsonl`.
#![allow(clippy::unwrap_used, missing_docs, reason = "a tool that stops where it is surprised")]

#[path = "../tests/support/good.rs"]
mod good;

use std::io::{BufWriter, Write};

use good::{Size, generate};
use reveille_chaos::history::Writer;

fn main() {
    let operations: u64 = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().unwrap());
    let size = Size { seed: 7, terminals: 1000, sessions: (operations / 10_000).max(4), burst: 9 };
    let mut writer = Writer::new(BufWriter::new(std::io::stdout().lock()));
    generate(size, &mut |event| writer.write(&event).unwrap());
    writer.into_inner().flush().unwrap();
}
