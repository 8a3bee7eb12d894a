//! The tasks that a node has for as long as it lives, beside the cluster's own. One that panics would leave a node that looks
//! ready and notifies nobody, or takes no terminals: so it ends, says what panicked, and is started again. What is one
//! terminal's, its session or a dial, is not watched: whoever found out how to have one panic must not end nodes by it. Knows
//! nothing of what the tasks do.

use anyhow::anyhow;
use reveille_cluster::guard;
use tokio::sync::mpsc;

/// Ends the node if a task panics.
#[derive(Clone)]
pub struct Guard {
    failed: mpsc::Sender<anyhow::Error>,
}

impl Guard {
    /// `failed` is told why the node must end.
    pub fn new(failed: mpsc::Sender<anyhow::Error>) -> Guard {
        Guard { failed }
    }

    /// The task, watched; `what` names it for an operator.
    pub fn watch<T: Future<Output = ()>>(
        &self,
        what: &'static str,
        task: T,
    ) -> impl Future<Output = ()> + use<T> {
        let failed = self.failed.clone();
        async move {
            let tell = |why: String| {
                // Full: it is ending already.
                let _ = failed.try_send(anyhow!(why));
            };
            guard::watch(what, task, tell).await.unwrap_or(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[tokio::test]
    async fn a_panic_says_what_panicked_and_an_end_says_nothing() {
        let (failed, mut failures) = mpsc::channel(1);
        let guard = Guard::new(failed);
        guard.watch("resting", async {}).await;
        assert!(failures.try_recv().is_err());
        guard.watch("working", async { panic!("at {}", 7) }).await;
        let why = failures.try_recv().unwrap().to_string();
        assert!(why.starts_with("working panicked: at 7;"), "{why}");
        // The second one of two: nobody waits for it.
        guard.watch("working", async { panic!("again") }).await;
        guard.watch("working", async { panic!("again") }).await;
    }
}
