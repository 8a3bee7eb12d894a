//! A node's process as a scheduler has it: every task of it runs, or none does. openraft's simulated runtime knows tasks,
//! not whose they are; here each task of a member belongs to the process that began it, and a process can stand still, as
//! under SIGSTOP: time goes on, and when it runs again all that it missed is due at once.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_protocol::fail_point::is_kill;
use reveille_protocol::id::NodeId;

use crate::world::lock;

thread_local! {
    /// The process whose task is polled now.
    static RUNS: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// One life of a node's process.
#[derive(Debug)]
pub struct Process {
    pub node: NodeId,
    /// It stands still, and these of its tasks would have run.
    still: Mutex<Option<Vec<Waker>>>,
    /// It has ended, and the world is about to see to it.
    over: AtomicBool,
}

impl Process {
    pub fn new(node: NodeId) -> Arc<Process> {
        Arc::new(Process { node, still: Mutex::default(), over: AtomicBool::new(false) })
    }

    /// From now on none of its tasks runs.
    pub fn pause(&self) {
        lock(&self.still).get_or_insert_default();
    }

    /// All of them do.
    pub fn resume(&self) {
        let missed = lock(&self.still).take();
        missed.into_iter().flatten().for_each(Waker::wake);
    }

    /// It has ended: nothing of it runs until the world has taken everything from it that it could do something to.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.pause();
    }

    pub fn is_paused(&self) -> bool {
        lock(&self.still).is_some()
    }

    /// A future that belongs to it, and whatever it spawns does.
    pub fn run<F: Future>(self: &Arc<Process>, future: F) -> Belongs<F> {
        Belongs { to: Some(self.clone()), future: Box::pin(future) }
    }

    /// Does something at once that a task of it does: what comes in from a link or a session. Nothing more of it happens if
    /// the node ends there.
    pub fn does(self: &Arc<Process>, work: impl FnOnce()) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let _turn = Turn(RUNS.replace(Some(self.clone())));
        match catch_unwind(AssertUnwindSafe(work)) {
            Err(panic) if !is_kill(&*panic) => resume_unwind(panic),
            Ok(()) | Err(_) => {}
        }
    }
}

/// The process whose task runs now; none of them in the world's own.
pub fn running() -> Option<Arc<Process>> {
    RUNS.with_borrow(Clone::clone)
}

/// See [`Process::run`].
pub struct Belongs<F> {
    to: Option<Arc<Process>>,
    future: Pin<Box<F>>,
}

/// Puts back whose turn it was, also when a task panics.
struct Turn(Option<Arc<Process>>);

impl Drop for Turn {
    fn drop(&mut self) {
        RUNS.set(self.0.take());
    }
}

impl<F: Future> Future for Belongs<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(process) = &self.to
            && let Some(missed) = &mut *lock(&process.still)
        {
            missed.push(context.waker().clone());
            return Poll::Pending;
        }
        let _turn = Turn(RUNS.replace(self.to.clone()));
        self.future.as_mut().poll(context)
    }
}

/// The simulated runtime, with tasks that belong to the process that spawns them.
pub struct NodeRuntime;

impl fmt::Debug for NodeRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeRuntime")
    }
}

impl AsyncRuntime for NodeRuntime {
    type JoinError = <SimRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <SimRuntime as AsyncRuntime>::Sleep;
    type Instant = <SimRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <SimRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <SimRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    #[track_caller]
    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let to = RUNS.with_borrow(Clone::clone);
        SimRuntime::spawn(Belongs { to, future: Box::pin(future) })
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        SimRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        SimRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        SimRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        SimRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        // Made by `SimRuntime` alone, which lends its threads to everything that runs in it.
        let _ = threads;
        NodeRuntime
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        SimRuntime::with_seed(0).block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, std::io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        SimRuntime::spawn_blocking(work)
    }
}
