//! Consistent probability: a rejection threshold T and a randomness R, both of 56 bits; a trace is kept where R >= T.
//!
//! Whoever decides by the same R decides alike, and what a smaller probability keeps a larger one keeps too. Source: OpenTelemetry
//! specification, "TraceState: Probability Sampling" and "Handling".

use crate::error::{CoreError, ErrorKind};

/// 2^56: as many values as R has, and the threshold that keeps nothing.
const RANGE: u64 = 1 << 56;
/// Hex digits of 56 bits.
const DIGITS: u32 = 14;
/// Digits that a threshold made of a percentage has behind its leading `f`s or `0`s: 10 % is `e666`.
const PRECISION: u32 = 4;

/// What R is compared with: the part of 2^56 that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Threshold(u64);

impl Threshold {
    /// Keeps everything: `th:0`.
    pub const ALWAYS: Self = Self(0);
    /// Keeps nothing; it cannot be written.
    pub const NEVER: Self = Self(RANGE);

    /// The threshold of a number of 56 bits; None for more.
    pub fn from_u64(value: u64) -> Option<Self> {
        (value < RANGE).then_some(Self(value))
    }

    /// The number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// The threshold that keeps so many percent, to four significant digits. What is over 0 keeps at least one of 2^56.
    pub fn of_percent(percent: f64) -> Result<Self, CoreError> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(CoreError::new(ErrorKind::ConfigInvalid, 0, format!("a percentage is between 0 and 100, not {percent}")));
        }
        let probability = percent / 100.0;
        if probability <= 0.0 {
            return Ok(Self::NEVER);
        }
        let kept = ((probability * RANGE as f64).round() as u64).clamp(1, RANGE);
        let exact = RANGE - kept;
        // Near the ends leading digits say nothing (`f` where little is kept, `0` where much is): each adds one.
        let leading = |part: f64| if part > 0.0 { (-part.log2() / 4.0).floor().max(0.0) as u32 } else { DIGITS };
        let digits = (PRECISION + leading(probability).max(leading(1.0 - probability))).min(DIGITS);
        let dropped_bits = 4 * (DIGITS - digits);
        if dropped_bits == 0 || exact == 0 {
            return Ok(Self(exact));
        }
        let rounded = (exact + (1 << (dropped_bits - 1))) >> dropped_bits << dropped_bits;
        Ok(Self(if rounded < RANGE { rounded } else { exact }))
    }

    /// Whether a trace of this randomness is kept.
    pub fn keeps(self, randomness: u64) -> bool {
        randomness >= self.0
    }

    /// How many traces one that was kept stands for: 2^56 / (2^56 - T); 0 for [`Self::NEVER`].
    pub fn adjusted_count(self) -> f64 {
        if self == Self::NEVER { 0.0 } else { RANGE as f64 / (RANGE - self.0) as f64 }
    }

    /// The value of `th`: 1 to 14 lower-case hex digits, zeros at the end left out. None for anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let missing = DIGITS.checked_sub(u32::try_from(text.len()).ok()?)?;
        if text.is_empty() {
            return None;
        }
        Some(Self(hex(text)? << (4 * missing)))
    }

    /// Appends the value of `th`, as short as it can be.
    pub fn write(self, out: &mut Vec<u8>) {
        debug_assert!(self != Self::NEVER, "what keeps nothing is never written");
        let mut rest = self.0 & (RANGE - 1);
        loop {
            out.push(b"0123456789abcdef"[(rest >> 52) as usize & 15]);
            rest = rest << 4 & (RANGE - 1);
            if rest == 0 {
                return;
            }
        }
    }
}

/// A number of lower-case hex digits.
fn hex(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// The value of `rv`: exactly 14 lower-case hex digits.
pub fn parse_randomness(text: &[u8]) -> Option<u64> {
    if text.len() == DIGITS as usize { hex(text) } else { None }
}

/// The randomness of a trace whose state has no `rv`: the low 56 bits of its id.
pub fn randomness_of(trace_id: &[u8; 16]) -> u64 {
    let mut low = [0; 8];
    low.copy_from_slice(&trace_id[8..]);
    u64::from_be_bytes(low) & (RANGE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(threshold: Threshold) -> String {
        let mut out = Vec::new();
        threshold.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn percentages_become_the_thresholds_of_the_specification() {
        for (percent, text) in [
            (100.0, "0"),
            (50.0, "8"),
            (25.0, "c"),
            (10.0, "e666"),
            (1.0, "fd70a"),
            (0.1, "ffbe77"),
            (200.0 / 3.0, "5555"),
            (100.0 / 3.0, "aaab"),
            (90.0, "199a"),
            (99.0, "028f6"),
            (1e-20, "ffffffffffffff"),
        ] {
            assert_eq!(written(Threshold::of_percent(percent).unwrap()), text, "{percent} %");
        }
        assert_eq!(Threshold::of_percent(0.0), Ok(Threshold::NEVER));
        assert!(!Threshold::NEVER.keeps(RANGE - 1));
        for percent in [-1.0, 100.1, f64::NAN, f64::INFINITY] {
            assert!(Threshold::of_percent(percent).is_err(), "{percent}");
        }
    }

    #[test]
    fn the_adjusted_count_is_the_inverse_of_the_probability() {
        assert_eq!(Threshold::ALWAYS.adjusted_count(), 1.0);
        assert_eq!(Threshold::of_percent(25.0).unwrap().adjusted_count(), 4.0);
        assert!((Threshold::of_percent(10.0).unwrap().adjusted_count() - 10.0).abs() < 0.001);
        assert_eq!(Threshold::NEVER.adjusted_count(), 0.0);
    }

    #[test]
    fn what_is_no_threshold_is_refused() {
        for text in ["", "E666", "0x1", "123456789012345", "g", " 8", "8 "] {
            assert_eq!(Threshold::parse(text.as_bytes()), None, "{text:?}");
        }
        for text in ["", "1234567890123", "123456789012345", "1234567890123G", "1234567890ABCD"] {
            assert_eq!(parse_randomness(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_randomness(b"0123456789abcd"), Some(0x0001_2345_6789_abcd));
    }

    #[test]
    fn randomness_is_the_low_56_bits_of_the_trace_id() {
        let id = [0xff, 1, 2, 3, 4, 5, 6, 7, 0xee, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(randomness_of(&id), 0x0009_0a0b_0c0d_0e0f);
    }

    proptest! {
        #[test]
        fn a_threshold_reads_back(value in 0..RANGE) {
            let threshold = Threshold::from_u64(value).unwrap();
            prop_assert_eq!(Threshold::parse(written(threshold).as_bytes()), Some(threshold));
        }

        #[test]
        fn the_smaller_probability_keeps_a_part_of_what_the_larger_keeps(a in 0.0..100.0f64, b in 0.0..100.0f64, randomness in 0..RANGE) {
            let (smaller, larger) = (Threshold::of_percent(a.min(b)).unwrap(), Threshold::of_percent(a.max(b)).unwrap());
            prop_assert!(smaller >= larger);
            prop_assert!(!smaller.keeps(randomness) || larger.keeps(randomness));
        }

        #[test]
        fn a_percentage_is_met_to_a_thousandth_of_itself(percent in 1e-9..100.0f64) {
            let kept = 100.0 / Threshold::of_percent(percent).unwrap().adjusted_count();
            prop_assert!((kept / percent - 1.0).abs() < 1e-3, "{} {}", percent, kept);
        }
    }
}
