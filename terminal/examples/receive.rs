//! A terminal in 30 lines: `cargo run --example receive -- HOST:PORT ca.pem STATE_FOLDER`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use reveille_terminal::{Builder, Event};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, ca, state] = &arguments[..] else {
        anyhow::bail!("usage: receive HOST:PORT CA_FILE STATE_FOLDER");
    };
    let mut terminal = Builder::new([server], ca, state).start().await?;
    println!("publish to {}", terminal.id());
    while let Some(event) = terminal.next().await {
        match event {
            Event::Received(push) => {
                let again = if push.maybe_seen { " (perhaps shown before)" } else { "" };
                println!("{}: {}{again}", push.seq, String::from_utf8_lossy(&push.body));
                // From here on it does not come again, not even after a crash.
                push.confirm();
            }
            Event::Problem { what } => println!("problem: {what}"),
            _ => {}
        }
    }
    Ok(())
}
