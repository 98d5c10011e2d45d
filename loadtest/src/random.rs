//! Chance for tests: xorshift, whose seed is printed, so that a failure can be played again.

use std::time::{SystemTime, UNIX_EPOCH};

pub struct Random(u64);

impl Random {
    /// Another one each time; prints its seed.
    #[cfg_attr(
        not(test),
        expect(clippy::print_stdout, reason = "the harness of tests shows what is printed so, where a test fails")
    )]
    pub fn new() -> Random {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        println!("seed {seed}");
        Random::seeded(seed)
    }

    pub fn seeded(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// One more, for another thread.
    pub fn fork(&mut self) -> Random {
        Random::seeded(self.below(u64::MAX) << 1)
    }
}

impl Default for Random {
    fn default() -> Random {
        Random::new()
    }
}
