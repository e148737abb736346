//! Which task comes when: every task once an epoch, in an order drawn from the seed.
//!
//! Environments whose tasks are too many to be repeated are played in order of index: their tasks
//! are drawn from the seed already.

use rand::seq::SliceRandom;
use tallow_envs::Seed;

/// Above this many tasks no run comes round again, so the order need not be shuffled.
const LARGEST_SHUFFLE: u64 = 1 << 22;

/// The sequence of task indices of a stage; a pure function of seed, length and position.
pub struct TaskOrder {
    seed: Seed,
    tasks: u64,
    /// The epoch last asked for and its order.
    epoch: Option<(u64, Vec<u32>)>,
}

impl TaskOrder {
    /// The order of `tasks` tasks (at least one).
    pub fn new(seed: Seed, tasks: u64) -> Self {
        Self { seed, tasks: tasks.max(1), epoch: None }
    }

    /// Index of the task that comes at `position`, counted over the whole stage.
    pub fn index(&mut self, position: u64) -> u64 {
        if self.tasks > LARGEST_SHUFFLE {
            return position % self.tasks;
        }
        let epoch = position / self.tasks;
        if self.epoch.as_ref().is_none_or(|it| it.0 != epoch) {
            let mut order: Vec<u32> = (0..self.tasks as u32).collect();
            order.shuffle(&mut self.seed.derive(&[epoch]).rng());
            self.epoch = Some((epoch, order));
        }
        let (_, order) = self.epoch.as_ref().expect("the epoch was just drawn");
        u64::from(order[(position % self.tasks) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_comes_once_an_epoch_in_another_order() {
        let mut order = TaskOrder::new(Seed(3), 10);
        let first: Vec<u64> = (0..10).map(|it| order.index(it)).collect();
        let second: Vec<u64> = (10..20).map(|it| order.index(it)).collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<u64>>());
        assert_ne!(first, second);
        assert_eq!(TaskOrder::new(Seed(3), 10).index(13), second[3]);
    }
}
