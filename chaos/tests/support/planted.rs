//! How tests of what is broken on purpose run `chaos`. What that has to come to is each test's.

use std::process::Command;

/// Its output, if it comes to this exit code.
pub fn chaos(code: i32, arguments: &[&str]) -> String {
    let ran = Command::new(env!("CARGO_BIN_EXE_chaos")).args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    assert_eq!(ran.status.code(), Some(code), "{said}");
    said
}
