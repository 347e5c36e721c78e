//! A fork-join pool that kernels share: one job at a time, split into numbered tasks. It knows nothing about kernels.
//!
//! Dispatching allocates nothing and takes no lock: a job is posted, joined and left by atomic operations on one word,
//! and only a worker that has found nothing to do for a while sleeps. Whoever dispatches works too, and waits only for
//! workers that have joined: one that wakes late finds the job withdrawn and goes back to sleep. Each thread begins with a
//! share of its own, the same in every call, and then helps the others. When the pool is busy with another session's job,
//! the job runs on the calling thread instead; what a task computes must therefore not depend on which thread runs it.

use crate::placement::{Cpus, Sleeper};
use std::cell::UnsafeCell;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Elementary operations below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 1 << 16;
/// How long an idle worker looks for the next job before it sleeps: longer than what lies between the products of a call.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks between two readings of the clock, and of a dispatcher before it yields its core.
const LOOKS: usize = 64;

/// Bits of [`Board::state`]: a job may be joined; the pool stops; the rest counts workers on the job, in steps of `JOINED`.
const OPEN: usize = 1;
const STOP: usize = 2;
const JOINED: usize = 4;
/// The bits of a [`Share`] that say where it ends.
const END: u64 = (1 << 32) - 1;

/// A fork-join pool of threads.
#[derive(Debug)]
pub struct Workers {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
}

/// What the pool's threads share.
#[derive(Debug)]
struct Board {
    /// Whether someone dispatches.
    busy: AtomicBool,
    /// `OPEN`, `STOP` and how many workers have joined.
    state: AtomicUsize,
    /// Written by the dispatcher while nobody has joined and nobody can, read by those who have.
    job: UnsafeCell<Option<Job>>,
    /// For each thread, the dispatching one first, the tasks of its share that nobody has taken.
    shares: Box<[Share]>,
    /// Whether a task of this job has panicked on a worker.
    panicked: AtomicBool,
    /// For each worker, whether it sleeps or is about to.
    asleep: Box<[AtomicBool]>,
    /// The workers, to be placed when they are woken.
    sleepers: Box<[Sleeper]>,
    cpus: Cpus,
}

/// A range of tasks, `first << 32 | end`, in a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Share(AtomicU64);

impl Share {
    /// Both below 2^32. Relaxed, here and below: a share only deals out numbers; the job that they are of is published by
    /// `Board::state`, and what tasks write by leaving the job.
    fn set(&self, first: u64, end: u64) {
        self.0.store(first << 32 | end, Ordering::Relaxed);
    }

    fn take_first(&self) -> Option<usize> {
        self.take(|range| range + (1 << 32)).map(|range| (range >> 32) as usize)
    }

    fn take_last(&self) -> Option<usize> {
        self.take(|range| range - 1).map(|range| (range & END) as usize - 1)
    }

    /// Shortens the range unless it is empty, and returns what it was.
    fn take(&self, shorten: impl Fn(u64) -> u64) -> Option<u64> {
        let shortened = |range: u64| (range >> 32 < range & END).then(|| shorten(range));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shortened).ok()
    }
}

/// A job on the board; the closure is only borrowed, see the SAFETY comment in [`Workers::run`].
#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
    }
}

// SAFETY: the closure is `Sync`, and `Workers::run` keeps it alive until no worker can reach it.
unsafe impl Send for Job {}
// SAFETY: all but `job` is atomic, and `job` is written only by the holder of `busy` while `state` shows no `OPEN` and
// nobody joined; it is read only by workers that have joined. `state` orders the two, see `post` and `withdraw`.
unsafe impl Sync for Board {}

impl Workers {
    /// A pool in which `threads` threads work, the dispatching one included: with 1, everything runs inline.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Workers> {
        let others = threads.get() - 1;
        let board = Board {
            busy: AtomicBool::new(false),
            state: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            shares: (0..threads.get()).map(|_| Share(AtomicU64::new(0))).collect(),
            panicked: AtomicBool::new(false),
            asleep: (0..others).map(|_| AtomicBool::new(false)).collect(),
            sleepers: (0..others).map(|_| Sleeper::default()).collect(),
            cpus: Cpus::of_caller(),
        };
        let mut workers = Workers { board: Arc::new(board), threads: Vec::with_capacity(others) };
        for index in 0..others {
            let board = Arc::clone(&workers.board);
            let builder = std::thread::Builder::new().name(format!("engraft-{}", index + 1));
            // On failure `workers` is dropped, which joins the threads begun so far.
            workers.threads.push(builder.spawn(move || board.work(index))?);
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
        let few = self.threads.is_empty() || tasks < 2 || operations < WORTH_SHARING;
        let inline = few || u32::try_from(tasks).is_err();
        // Acquire: the former dispatcher's job is over before this one's is written.
        if inline || self.board.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(task);
            return;
        }
        // SAFETY: only the lifetime changes. Workers reach the closure through `Board::job` alone, and only while they are
        // counted in `Board::state`; `Dispatch` closes the job and waits for them before this call ends, whether it
        // returns or unwinds.
        let task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let panicked = {
            let dispatch = Dispatch(&self.board);
            self.post(Job { task }, tasks as u64);
            self.board.take_tasks(0, task);
            dispatch.finish()
        };
        assert!(!panicked, "a task panicked on a worker thread");
    }

    /// Puts a job on the board and wakes who sleeps. Only for who has set `busy`.
    fn post(&self, job: Job, tasks: u64) {
        let board = &*self.board;
        // SAFETY: `busy` is ours, so no other dispatcher writes; the last one left the job closed and nobody joined.
        unsafe { *board.job.get() = Some(job) };
        // Relaxed: published by `state`.
        let threads = board.shares.len() as u64;
        for (thread, share) in (0..).zip(&board.shares) {
            share.set(thread * tasks / threads, (thread + 1) * tasks / threads);
        }
        board.panicked.store(false, Ordering::Relaxed);
        board.state.fetch_or(OPEN, Ordering::SeqCst);
        self.wake();
    }

    /// Wakes every worker that sleeps. `SeqCst` here, where `state` was changed, and in [`Board::sleep`]: either this sees
    /// that the worker goes to sleep, or the worker sees the change.
    fn wake(&self) {
        let workers = self.board.asleep.iter().zip(&self.board.sleepers).zip(&self.threads);
        for ((asleep, sleeper), thread) in workers {
            if asleep.load(Ordering::SeqCst) {
                self.board.cpus.but_the_callers(sleeper);
                asleep.store(false, Ordering::SeqCst);
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.board.state.fetch_or(STOP, Ordering::SeqCst);
        self.wake();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}

impl Board {
    /// The life of a worker thread.
    fn work(&self, index: usize) {
        self.sleepers[index].is_caller();
        while let Some(job) = self.join(index) {
            // SAFETY: the dispatcher keeps the closure alive while this thread is counted, see `Workers::run`.
            let task = unsafe { &*job.task };
            let tasks = std::panic::AssertUnwindSafe(|| self.take_tasks(index + 1, task));
            if std::panic::catch_unwind(tasks).is_err() {
                // Relaxed: published by leaving.
                self.panicked.store(true, Ordering::Relaxed);
            }
            // No task is left, or one has panicked: nobody else need join, this thread again least of all.
            self.state.fetch_and(!OPEN, Ordering::Relaxed);
            // Release: what the tasks wrote, and the end of this thread's use of the job.
            self.state.fetch_sub(JOINED, Ordering::Release);
        }
    }

    /// Waits for a job and counts this thread among those on it; `None` when the pool stops.
    fn join(&self, index: usize) -> Option<Job> {
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & STOP != 0 {
                return None;
            }
            if state & OPEN == 0 {
                self.idle(index);
                continue;
            }
            // Acquire: the job as its dispatcher wrote it; the joins in between are part of its release sequence.
            let joined =
                self.state.compare_exchange_weak(state, state + JOINED, Ordering::Acquire, Ordering::Relaxed);
            if joined.is_ok() {
                // SAFETY: joined, so the job stays as it is until this thread leaves. It may be a later one than the
                // state first read was of; it is open all the same.
                return unsafe { *self.job.get() };
            }
        }
    }

    /// Returns when there is a job to join or the pool stops: spins for a while, then sleeps.
    fn idle(&self, index: usize) {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            for _ in 0..LOOKS {
                if self.state.load(Ordering::Relaxed) & (OPEN | STOP) != 0 {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        self.sleep(&self.asleep[index]);
    }

    fn sleep(&self, asleep: &AtomicBool) {
        asleep.store(true, Ordering::SeqCst);
        while self.state.load(Ordering::SeqCst) & (OPEN | STOP) == 0 && asleep.load(Ordering::Relaxed) {
            std::thread::park();
        }
        asleep.store(false, Ordering::Relaxed);
    }

    /// Runs a thread's own share from the front, then what is left of the others' from the back. So the same thread does
    /// the same tasks in every call of a program, as far as it can, and finds their weights in its cache.
    fn take_tasks(&self, thread: usize, task: &(dyn Fn(usize) + Sync)) {
        while let Some(number) = self.shares[thread].take_first() {
            task(number);
        }
        let (before, others) = self.shares.split_at(thread);
        for other in others.iter().chain(before) {
            while let Some(number) = other.take_last() {
                task(number);
            }
        }
    }

    /// Closes the job and waits for the workers on it.
    fn withdraw(&self) {
        self.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut looks = 0;
        // Acquire: what workers wrote before they left. None can join any more, so the count only falls.
        while self.state.load(Ordering::Acquire) >= JOINED {
            looks += 1;
            // A worker has at most its last task to do. Parking instead would take a token that the calling thread may
            // have been sent for purposes of its own.
            if looks < LOOKS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// The dispatcher's hold of the pool, released when it ends or unwinds.
struct Dispatch<'a>(&'a Board);

impl Dispatch<'_> {
    /// Waits for the end of the job, and says whether a task panicked on a worker.
    fn finish(self) -> bool {
        self.0.withdraw();
        // Relaxed: stored before the worker left.
        self.0.panicked.load(Ordering::Relaxed)
    }
}

impl Drop for Dispatch<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
        // Release: the next dispatcher writes the job after this.
        self.0.busy.store(false, Ordering::Release);
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

    #[test]
    fn more_threads_than_cores_and_many_small_jobs_give_the_same_sums() {
        let pool = pool(9);
        for round in 0..3000_usize {
            let tasks = 2 + round % 23;
            let sums: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, WORTH_SHARING, &|task| {
                sums[task].fetch_add(task * round, Ordering::Relaxed);
            });
            assert!(sums.into_iter().enumerate().all(|(task, sum)| sum.into_inner() == task * round));
        }
    }

    #[test]
    fn sleeping_workers_wake_for_a_job_and_for_the_end() {
        let pool = pool(3);
        for _ in 0..20 {
            while !pool.board.asleep.iter().all(|asleep| asleep.load(Ordering::SeqCst)) {
                std::thread::yield_now();
            }
            // Each task waits for the others, so all three threads must come.
            let barrier = std::sync::Barrier::new(3);
            pool.run(3, WORTH_SHARING, &|_| {
                barrier.wait();
            });
        }
        while !pool.board.asleep.iter().all(|asleep| asleep.load(Ordering::SeqCst)) {
            std::thread::yield_now();
        }
        drop(pool);
    }

    #[test]
    fn pools_are_dropped_whatever_their_workers_do() {
        for round in 0..200 {
            let pool = pool(4);
            let count = AtomicUsize::new(0);
            (0..round % 3).for_each(|_| {
                pool.run(5, WORTH_SHARING, &|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            });
            drop(pool);
            assert_eq!(count.into_inner(), round % 3 * 5);
        }
    }

    #[test]
    fn one_thread_starts_no_other_and_works_on_the_callers() {
        let pool = pool(1);
        assert!(pool.threads.is_empty());
        let caller = std::thread::current().id();
        pool.run(100, WORTH_SHARING, &|_| assert_eq!(std::thread::current().id(), caller));
    }
}
