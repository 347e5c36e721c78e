//! A fork-join pool that kernels share: one job at a time, split into numbered tasks. It knows nothing about kernels.
//!
//! Dispatching allocates nothing. Whoever dispatches works too, and waits only for workers that have begun: a worker
//! that wakes late finds the job withdrawn and goes back to sleep. When the pool is busy with another session's job, the
//! job runs on the calling thread instead; what a task computes must therefore not depend on which thread runs it.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// Elementary operations below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;
/// How many portions each thread takes of a job on average, so that a late or slow thread doesn't hold up the others.
const PORTIONS: usize = 8;
/// How often an idle worker looks for the next job before it goes to sleep.
const SPINS: u32 = 2_000;

/// A fork-join pool of threads.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Board>,
    /// Held by whoever has the pool.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

/// What the pool's threads share.
#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    /// Tells workers that there is a new job or that the pool stops.
    posted: Condvar,
    /// Tells the dispatcher that the last running worker has finished.
    finished: Condvar,
    /// Counts jobs; changes only under `state`, read without it while spinning.
    epoch: AtomicU64,
    /// The first task not yet taken.
    next: AtomicUsize,
    /// Whether a task of this job has panicked on a worker.
    panicked: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    job: Option<Job>,
    running: usize,
    stop: bool,
}

/// A job on the board; the closure is only borrowed, see the SAFETY comment in [`Workers::run`].
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    portion: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("tasks", &self.tasks)
            .field("portion", &self.portion)
            .finish_non_exhaustive()
    }
}

// SAFETY: the closure is `Sync`, and `Workers::run` keeps it alive until no worker can reach it.
unsafe impl Send for Job {}

impl Workers {
    /// A pool in which `threads` threads work, the dispatching one included: with 1, everything runs inline.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Workers> {
        let mut workers = Workers { shared: Arc::default(), turn: Mutex::new(()), threads: Vec::new() };
        for index in 1..threads.get() {
            let board = Arc::clone(&workers.shared);
            let builder = std::thread::Builder::new().name(format!("engraft-{index}"));
            // On failure `workers` is dropped, which joins the threads begun so far.
            workers.threads.push(builder.spawn(move || board.work())?);
        }
        Ok(workers)
    }

    /// How many threads work on a job, the dispatching one included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `task(0)`, ..., `task(tasks - 1)`, each once, in any order, and returns when all are done. `operations` is
    /// roughly how much work they are together; little work stays on this thread.
    ///
    /// # Panics
    /// When a task panics, after the others have ended.
    pub fn run(&self, tasks: usize, operations: usize, task: &(dyn Fn(usize) + Sync)) {
        let inline = self.threads.is_empty() || tasks < 2 || operations < WORTH_SHARING;
        let turn = if inline { None } else { self.take_turn() };
        if turn.is_none() {
            (0..tasks).for_each(task);
            return;
        }
        let board = &*self.shared;
        // SAFETY: only the lifetime changes. Workers reach the closure through `State::job` alone, and only while they
        // are counted in `State::running`; `Withdraw` clears the one and waits for the other before this call ends,
        // whether it returns or unwinds.
        let task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Job { task, tasks, portion: (tasks / (PORTIONS * self.threads())).max(1) };
        {
            let _withdraw = Withdraw(board);
            board.post(job);
            board.take_portions(job);
        }
        assert!(!board.panicked.load(Ordering::Relaxed), "a task panicked on a worker thread");
    }

    fn take_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(guard) => Some(guard),
            // A job that panicked has been withdrawn; there is no data behind this lock that it could have broken.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stop = true;
            self.shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.posted.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No task runs under this lock, so a poisoned state is still a consistent one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, job: Job) {
        let mut state = self.lock();
        self.next.store(0, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        state.job = Some(job);
        self.epoch.fetch_add(1, Ordering::Release);
        self.posted.notify_all();
    }

    /// The life of a worker thread.
    fn work(&self) {
        let mut seen = 0;
        while let Some(job) = self.begin(&mut seen) {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take_portions(job)));
            if outcome.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            let mut state = self.lock();
            state.running -= 1;
            if state.running == 0 {
                self.finished.notify_one();
            }
        }
    }

    /// Waits for a job other than `seen` and counts this thread among those running it; `None` when the pool stops.
    fn begin(&self, seen: &mut u64) -> Option<Job> {
        for _ in 0..SPINS {
            if self.epoch.load(Ordering::Acquire) != *seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = self.lock();
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            if state.stop {
                return None;
            }
            if epoch != *seen {
                *seen = epoch;
                if let Some(job) = state.job {
                    state.running += 1;
                    return Some(job);
                }
            }
            state = self.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_portions(&self, job: Job) {
        // SAFETY: the dispatcher keeps the closure alive while this thread works on its job, see `Workers::run`.
        let task = unsafe { &*job.task };
        loop {
            let first = self.next.fetch_add(job.portion, Ordering::Relaxed);
            if first >= job.tasks {
                return;
            }
            (first..(first + job.portion).min(job.tasks)).for_each(task);
        }
    }
}

/// Takes the job off the board and waits for the workers still on it.
struct Withdraw<'a>(&'a Board);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.job = None;
        while state.running > 0 {
            state = self.0.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Lets the tasks of a job share raw pointers.
pub(crate) struct Shared<T>(pub(crate) T);

// SAFETY: whoever builds one vouches for what the tasks do with the pointers inside: each writes its own part only.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// A method rather than the field, so that a closure captures the whole and not the pointers.
    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{WORTH_SHARING, Workers};
    use std::num::NonZeroUsize;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pool(threads: usize) -> Workers {
        Workers::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_task_runs_once_whatever_the_threads() {
        for threads in 1..=4 {
            let pool = pool(threads);
            for tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, WORTH_SHARING, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn dispatching_from_several_threads_and_from_inside_a_task_works() {
        let pool = pool(3);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(8, WORTH_SHARING, &|_| {
                            pool.run(2, WORTH_SHARING, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 50 * 8 * 2);
    }

    #[test]
    fn a_panicking_task_reaches_the_dispatcher_and_leaves_the_pool_usable() {
        let pool = pool(2);
        for _ in 0..10 {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(64, WORTH_SHARING, &|task| assert!(task != 40, "task 40"));
            }));
            assert!(outcome.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(64, WORTH_SHARING, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }
}
