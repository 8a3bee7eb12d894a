//! Fail points of this process: what is to happen at which is what the file says that the environment names, looked at again
//! and again. Only in builds with the feature `canary`, which no release is: in all others there is nothing here.

/// Whether this build has any.
pub const HAS_FAIL_POINTS: bool = cfg!(feature = "canary");

/// What `--version` says. `chaos` looks for it.
pub const VERSION: &str = match HAS_FAIL_POINTS {
    true => concat!(env!("CARGO_PKG_VERSION"), ", with fail points: for tests alone"),
    false => env!("CARGO_PKG_VERSION"),
};

/// From now on what is ordered happens to this node.
///
/// # Errors
/// If there is a file of orders and it cannot be read.
#[cfg(not(feature = "canary"))]
pub fn follow(_: u64) -> anyhow::Result<()> {
    Ok(())
}

/// It has its incarnation, and takes part.
#[cfg(not(feature = "canary"))]
pub fn started() {}

#[cfg(feature = "canary")]
pub use self::followed::{follow, started};

#[cfg(feature = "canary")]
mod followed {
    use std::fs::File;
    use std::io::{ErrorKind, Write};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, PoisonError, RwLock};
    use std::time::Duration;

    use anyhow::Context;
    use rand::Rng;
    use reveille_protocol::fail_point::{Action, FILE, Order, Point, watch_process};
    use reveille_protocol::id::NodeId;

    /// How old what is known of the file may be.
    const LOOK: Duration = Duration::from_millis(20);

    static STARTED: AtomicBool = AtomicBool::new(false);

    struct Followed {
        node: NodeId,
        file: PathBuf,
        /// There are orders: all that a step looks at while there are none.
        any: AtomicBool,
        orders: RwLock<Vec<Order>>,
    }

    /// See above.
    pub fn follow(node: u64) -> anyhow::Result<()> {
        tracing::warn!(
            "THIS BUILD HAS FAIL POINTS AND BUGS THAT CAN BE PLANTED: it is for tests alone, and must serve nobody"
        );
        let Some(file) = std::env::var_os(FILE).map(PathBuf::from) else { return Ok(()) };
        let (any, orders) = (AtomicBool::new(false), RwLock::default());
        let all = Arc::new(Followed { node: NodeId(node), file, any, orders });
        let mut known = String::new();
        all.look(&mut known)?;
        tracing::warn!(file = %all.file.display(), "what is ordered there happens at this node's fail points");
        let looks = all.clone();
        let look_again = move || {
            loop {
                std::thread::sleep(LOOK);
                if let Err(error) = looks.look(&mut known) {
                    tracing::error!("{error:#}; what was ordered before holds");
                }
            }
        };
        std::thread::Builder::new().name("fail points".to_owned()).spawn(look_again)?;
        watch_process(move |point, can| all.happens(point, can));
        Ok(())
    }

    /// See above.
    pub fn started() {
        STARTED.store(true, Ordering::Relaxed);
    }

    impl Followed {
        /// Whoever writes the file puts it whole in the place of the one before.
        fn look(&self, known: &mut String) -> anyhow::Result<()> {
            let named = || format!("{FILE}: {}", self.file.display());
            let text = std::fs::read_to_string(&self.file).with_context(named)?;
            if text == *known {
                return Ok(());
            }
            let orders: Vec<Order> = serde_json::from_str(&text).with_context(named)?;
            self.any.store(!orders.is_empty(), Ordering::Relaxed);
            *self.orders.write().unwrap_or_else(PoisonError::into_inner) = orders;
            *known = text;
            Ok(())
        }

        fn happens(&self, point: Point, can: fn(Action) -> bool) -> Option<Action> {
            if !self.any.load(Ordering::Relaxed) {
                return None;
            }
            let starting = !STARTED.load(Ordering::Relaxed);
            let action = {
                let orders = self.orders.read().unwrap_or_else(PoisonError::into_inner);
                let mut fit = orders.iter().filter(|order| {
                    order.point == point
                        && order.nodes.contains(&self.node)
                        && (starting || !order.starting)
                        && can(order.action)
                });
                fit.find(|order| rand::rng().random::<f64>() < order.share && self.is_first(order))?.action
            };
            tracing::warn!(point = point.name(), ?action, starting, "fail point");
            if action == Action::Kill {
                // As by kill -9: nothing is flushed, dropped or said.
                std::process::abort();
            }
            Some(action)
        }

        /// Of all nodes that it may happen to so often, none was before this one.
        fn is_first(&self, order: &Order) -> bool {
            (0..order.hits).any(|n| match self.take(&order.taken(&self.file, n)) {
                Ok(()) => true,
                Err(error) => {
                    if error.kind() != ErrorKind::AlreadyExists {
                        tracing::error!(%error, file = %self.file.display(), "nothing can be written beside it");
                    }
                    false
                }
            })
        }

        fn take(&self, file: &Path) -> std::io::Result<()> {
            File::create_new(file)?.write_all(self.node.to_string().as_bytes())
        }
    }
}
