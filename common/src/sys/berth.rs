// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a thread leaves what it owns while it is away, for another one to take if it stays away.

use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A place for one thing of one thread. The thread that takes it owns it: there is never a second
/// owner, and nothing refers to what lies here.
pub(crate) struct Berth<T> {
    left: AtomicPtr<T>,
    owns: PhantomData<Box<T>>,
}

// SAFETY: what lies here is reached by `take` alone, which gives it to one thread. It may have
// parts that are counted without atomics (`Rc` of a memory table): all handles of such a part are
// within it, but for those in a `memory::Lent`, which can neither be cloned nor dropped before it
// is back.
unsafe impl<T> Send for Berth<T> {}
// SAFETY: as above; a `&Berth` does nothing but `leave` and `take`.
unsafe impl<T> Sync for Berth<T> {}

impl<T> Default for Berth<T> {
    fn default() -> Self {
        Self {
            left: AtomicPtr::new(ptr::null_mut()),
            owns: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Berth<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.is_empty();
        f.debug_struct("Berth").field("is_empty", &taken).finish()
    }
}

impl<T> Berth<T> {
    /// Leaves `what` here. The place must be empty; what was there is leaked.
    #[inline]
    pub(crate) fn leave(&self, what: Box<T>) {
        self.left.store(Box::into_raw(what), Ordering::Release);
    }

    /// Takes what was left here, unless another thread has.
    #[inline]
    pub(crate) fn take(&self) -> Option<Box<T>> {
        let left = self.left.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: `leave` has made it of a box, and the swap gives it to one caller only.
        (!left.is_null()).then(|| unsafe { Box::from_raw(left) })
    }

    /// Whether nothing was left here, or another thread has taken it.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.left.load(Ordering::Relaxed).is_null()
    }
}

impl<T> Drop for Berth<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn f4_4_what_is_left_in_a_berth_is_taken_once_whoever_is_faster() {
        let (berth, taken) = (Berth::<u32>::default(), AtomicUsize::new(0));
        for round in 0..2000 {
            berth.leave(Box::new(round));
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        if berth.take().is_some_and(|got| *got == round) {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert_eq!(taken.load(Ordering::Relaxed), round as usize + 1);
        }
        assert!(berth.is_empty());
    }

    #[test]
    fn f4_4_what_nobody_takes_from_a_berth_goes_with_it() {
        let what = Arc::new(());
        let berth = Berth::default();
        berth.leave(Box::new(Arc::clone(&what)));
        assert_eq!(Arc::strong_count(&what), 2);
        drop(berth);
        assert_eq!(Arc::strong_count(&what), 1);
    }
}
