//! What waits for a terminal to be heard: one order per handle, for a bounded time, bounded in number. What an order
//! says is the shell's.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits;
use crate::time::Instant;
use crate::wire::stun::Handle;

#[derive(Debug)]
pub(super) struct Orders<T> {
    orders: BTreeMap<Handle, (Instant, T)>,
    deadlines: BTreeSet<(Instant, Handle)>,
}

impl<T> Orders<T> {
    pub(super) fn new() -> Orders<T> {
        Orders { orders: BTreeMap::new(), deadlines: BTreeSet::new() }
    }

    /// Remembers an order until `deadline`; gives back the one that it replaces, or the one whose time is over first if too
    /// many wait.
    pub(super) fn put(&mut self, handle: Handle, deadline: Instant, order: T) -> Option<T> {
        let mut given_up = self.take(&handle);
        if self.orders.len() >= limits::MAX_ANCHOR_ORDERS
            && let Some(&(_, first)) = self.deadlines.first()
        {
            given_up = self.take(&first);
        }
        self.deadlines.insert((deadline, handle));
        self.orders.insert(handle, (deadline, order));
        given_up
    }

    pub(super) fn take(&mut self, handle: &Handle) -> Option<T> {
        let (deadline, order) = self.orders.remove(handle)?;
        self.deadlines.remove(&(deadline, *handle));
        Some(order)
    }

    /// An order whose time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Option<T> {
        let (deadline, handle) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.take(&handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_bounded_in_number_and_time() {
        let mut orders = Orders::new();
        let handle = |n: usize| Handle((n as u128).to_be_bytes());
        for n in 0..limits::MAX_ANCHOR_ORDERS {
            assert_eq!(orders.put(handle(n), Instant(n as u64), n), None);
        }
        assert_eq!(orders.put(handle(usize::MAX), Instant(3), 7), Some(0), "too many");
        assert_eq!(orders.put(handle(5), Instant(1), 8), Some(5), "the latest wins");
        let expired: Vec<usize> = std::iter::from_fn(|| orders.expired(Instant(2))).collect();
        assert_eq!(expired, [1, 8, 2]);
        assert_eq!(orders.take(&handle(3)), Some(3));
        assert_eq!(orders.take(&handle(3)), None);
        assert_eq!(orders.orders.len(), orders.deadlines.len());
    }
}
