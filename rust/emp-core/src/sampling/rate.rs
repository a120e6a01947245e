//! A token bucket whose time is an argument.

use crate::error::{CoreError, ErrorKind};

/// Fills at a rate, up to what one second brings.
#[derive(Clone, Debug)]
pub struct Bucket {
    per_s: f64,
    capacity: f64,
    tokens: f64,
    last_ns: Option<i64>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_s: f64) -> Result<Self, CoreError> {
        if !(per_s > 0.0 && per_s.is_finite()) {
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, format!("a rate is over 0 a second, not {per_s}")));
        }
        let capacity = per_s.max(1.0);
        Ok(Self { per_s, capacity, tokens: capacity, last_ns: None })
    }

    /// Whether there is enough for `cost`, which is then taken. What costs more than the bucket holds passes when it is full, and is paid off.
    pub fn take(&mut self, cost: f64, time_ns: i64) -> bool {
        let elapsed_ns = time_ns.saturating_sub(self.last_ns.unwrap_or(time_ns)).max(0);
        self.last_ns = Some(time_ns);
        self.tokens = (self.tokens + elapsed_ns as f64 * 1e-9 * self.per_s).min(self.capacity);
        // What adding up fractions loses must not refuse one that is due.
        let enough = self.tokens + 1e-6 >= cost.min(self.capacity);
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_brings_what_was_asked_for_and_no_more() {
        let mut bucket = Bucket::new(10.0).unwrap();
        for second in 0..5 {
            let taken = (0..100).filter(|_| bucket.take(1.0, second * 1_000_000_000)).count();
            assert_eq!(taken, 10, "second {second}");
        }
        assert_eq!((0..100).filter(|_| bucket.take(1.0, 3_600_000_000_000)).count(), 10, "an idle hour saves nothing up");
    }

    #[test]
    fn what_is_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_off() {
        let mut bucket = Bucket::new(10.0).unwrap();
        assert!(bucket.take(50.0, 0));
        assert!(!bucket.take(1.0, 4_000_000_000));
        assert!(bucket.take(1.0, 4_200_000_000));
    }

    #[test]
    fn a_rate_under_one_a_second_lets_one_through_at_a_time() {
        let mut bucket = Bucket::new(0.5).unwrap();
        assert_eq!((0..=8).filter(|second| bucket.take(1.0, second * 1_000_000_000)).count(), 5);
        assert!(Bucket::new(0.0).is_err() && Bucket::new(f64::NAN).is_err() && Bucket::new(f64::INFINITY).is_err());
    }
}
