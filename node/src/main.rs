//! `reveille`: the server and command line of Reveille. A map; each command is a file in `cli`.

mod assemble;
mod bare_key;
mod certificates;
mod cli;
mod config;
mod ending;
mod enrolment;
mod fail_points;
#[cfg(all(test, feature = "turmoil"))]
mod floor;
mod ground;
mod guard;
mod host;
mod http;
mod join;
mod notify;
mod random;
mod session;
mod shutdown;
mod telemetry;

use std::process::ExitCode;

use reveille_protocol::canary;

const _: () = assert!(
    !canary::PLANTABLE || cfg!(debug_assertions),
    "`reveille` is not to be released with bugs that can be planted and fail points: the feature `canary` is for tests alone"
);

#[cfg(all(feature = "turmoil", not(test)))]
compile_error!(
    "`reveille` is not to be built on a simulated network: the feature `turmoil` is for its tests alone"
);

/// A publish is some hundred small allocations on one thread, freed on another: glibc's allocator took a sixth of
/// the processor for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: what happened, and what it was about.
            #[allow(clippy::print_stderr, reason = "a command's last word to its user")]
            {
                eprintln!("reveille: {error:#}");
            }
            ExitCode::from(ending::exit_code(&error))
        }
    }
}
