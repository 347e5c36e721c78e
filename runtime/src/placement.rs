//! Where a sleeping thread wakes up: on another CPU than the one that wakes it. Left alone, Linux may wake a worker on the
//! CPU of a dispatcher that is about to work there, and leave both to share it for many milliseconds while another CPU
//! idles. Only a hint: where it cannot be given, threads wake wherever the system likes. It knows nothing about jobs.

#[cfg(target_os = "linux")]
pub(crate) use linux::{Cpus, Sleeper};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{Cpus, Sleeper};

#[cfg(target_os = "linux")]
mod linux {
    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use std::sync::atomic::{AtomicI32, Ordering};

    /// The CPUs that a pool may use.
    #[derive(Debug)]
    pub(crate) struct Cpus(Option<CpuSet>);

    /// A thread that may be asleep.
    #[derive(Debug, Default)]
    pub(crate) struct Sleeper(AtomicI32);

    impl Cpus {
        /// Those of the calling thread.
        pub(crate) fn of_caller() -> Cpus {
            Cpus(sched_getaffinity(None).ok().filter(|cpus| cpus.count() > 1))
        }

        /// Lets a sleeping thread wake on any of the CPUs but the caller's.
        pub(crate) fn but_the_callers(&self, sleeper: &Sleeper) {
            // Relaxed: whoever knows that the thread sleeps knows what it did before.
            let thread = Pid::from_raw(sleeper.0.load(Ordering::Relaxed));
            if let (Some(cpus), Some(thread)) = (&self.0, thread) {
                let (mut others, own) = (*cpus, sched_getcpu());
                if own < CpuSet::MAX_CPU {
                    others.unset(own);
                }
                if others.count() > 0 {
                    // A hint that the system may refuse.
                    let _ = sched_setaffinity(Some(thread), &others);
                }
            }
        }
    }

    impl Sleeper {
        /// Makes it the calling thread.
        pub(crate) fn is_caller(&self) {
            self.0.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    /// See the other module of this name.
    #[derive(Debug)]
    pub(crate) struct Cpus;

    /// See the other module of this name.
    #[derive(Debug, Default)]
    pub(crate) struct Sleeper;

    impl Cpus {
        pub(crate) fn of_caller() -> Cpus {
            Cpus
        }

        pub(crate) fn but_the_callers(&self, _: &Sleeper) {}
    }

    impl Sleeper {
        pub(crate) fn is_caller(&self) {}
    }
}
