//! Progress bars that redraw themselves with carriage returns, as tqdm draws them: `67%|██████▋   | 20/30 [00:05<00:02,  3.9it/s]`.
//!
//! Of one bar's states the last is a row, and one whenever an interval has passed; the others are counted. Text between the states that is
//! no bar is a line of its own.

use crate::lines::Fields;

/// The state of a bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar<'a> {
    /// What stands before it; empty without.
    pub operation: &'a [u8],
    /// 0 to 100.
    pub percent: u8,
    /// Steps done and all of them, where the bar says so.
    pub steps: Option<(u64, u64)>,
    /// Steps a second.
    pub rate: Option<f64>,
}

/// No bar is longer.
const MOST_BAR_BYTES: usize = 2048;

/// The bar that a text is; None where it is none.
pub fn bar(text: &[u8]) -> Option<Bar<'_>> {
    let text = text.trim_ascii();
    if text.len() > MOST_BAR_BYTES {
        return None;
    }
    let sign = memchr::memmem::find(text, b"%|")?;
    let digits = text[..sign].iter().rev().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    let percent = number(&text[sign - digits..sign]).filter(|percent| *percent <= 100)? as u8;
    let operation = text[..sign - digits].trim_ascii();
    let operation = operation.strip_suffix(b":").unwrap_or(operation);
    let rest = &text[sign + 2..];
    let rest = &rest[memchr::memrchr(b'|', rest)? + 1..];
    let counts = rest.trim_ascii_start();
    let word = &counts[..memchr::memchr(b' ', counts).unwrap_or(counts.len())];
    let steps = memchr::memchr(b'/', word).and_then(|at| Some((number(&word[..at])?, number(&word[at + 1..])?)));
    Some(Bar { operation, percent, steps, rate: rate(rest) })
}

/// `3.9it/s`, or `2.5s/it`.
fn rate(text: &[u8]) -> Option<f64> {
    let value = |end: usize| {
        let len = text[..end].iter().rev().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
        std::str::from_utf8(&text[end - len..end]).ok()?.parse::<f64>().ok()
    };
    if let Some(at) = memchr::memmem::find(text, b"it/s") {
        return value(at);
    }
    let seconds = value(memchr::memmem::find(text, b"s/it")?)?;
    (seconds > 0.0).then(|| 1.0 / seconds)
}

fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

impl Bar<'_> {
    /// Writes what the bar says: a progress event.
    pub fn put(&self, fields: &mut Fields) {
        fields.text(b"level", b"info");
        fields.text(b"event_type", b"job_progress");
        fields.int(b"progress", i64::from(self.percent));
        if !self.operation.is_empty() {
            fields.text(b"current_operation", self.operation);
        }
        if let Some((done, all)) = self.steps {
            fields.int(b"progress.steps_done", i64::try_from(done).unwrap_or(i64::MAX));
            fields.int(b"progress.steps_total", i64::try_from(all).unwrap_or(i64::MAX));
        }
        if let Some(rate) = self.rate {
            fields.float(b"progress.steps_per_s", rate);
        }
    }

    /// Whether another state is one of the same bar.
    pub fn is_same(&self, other: &Bar<'_>) -> bool {
        let all = |bar: &Bar<'_>| bar.steps.map(|(_, all)| all);
        self.operation == other.operation && all(self) == all(other) && self.percent <= other.percent
    }
}

/// When a bar of a source may be a row again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    next_unix_nano: i64,
}

impl Pace {
    /// Whether a state that is not the last may be a row now.
    pub fn is_due(&mut self, now_unix_nano: i64, interval_ns: i64) -> bool {
        if self.next_unix_nano == 0 {
            self.next_unix_nano = now_unix_nano.saturating_add(interval_ns);
        }
        // A clock that was set back must not silence a bar.
        let is_due = now_unix_nano >= self.next_unix_nano || now_unix_nano < self.next_unix_nano.saturating_sub(2 * interval_ns);
        if is_due {
            self.next_unix_nano = now_unix_nano.saturating_add(interval_ns);
        }
        is_due
    }

    /// A bar has ended: the next one begins its own interval.
    pub fn end(&mut self) {
        self.next_unix_nano = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tqdms_bars_are_read() {
        let text = " 67%|██████▋   | 20/30 [00:05<00:02,  3.90it/s]";
        let found = bar(text.as_bytes()).unwrap();
        assert_eq!(found, Bar { operation: b"", percent: 67, steps: Some((20, 30)), rate: Some(3.9) });
        let found = bar("Loading model:   5%|▌         | 1/20 [00:02<00:47,  2.50s/it, loss=0.1]".as_bytes()).unwrap();
        assert_eq!(found, Bar { operation: b"Loading model", percent: 5, steps: Some((1, 20)), rate: Some(0.4) });
        assert_eq!(bar(b"100%|##########| 1.2G/1.2G [00:05<00:00, 240MB/s]").unwrap().steps, None);
        for text in ["", "50% done", "101%|x| 1/2", "%|x|", "a|b", "50%|no end"] {
            assert_eq!(bar(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_bar_is_due_once_an_interval_and_a_clock_set_back_does_not_silence_it() {
        let mut pace = Pace::default();
        let due: Vec<bool> = [1000, 1005, 1010, 1011, 1019, 1020, 5, 6].map(|now| pace.is_due(now, 10)).to_vec();
        assert_eq!(due, [false, false, true, false, false, true, true, false]);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_for_a_bar(text in "[0-9]{0,3}%?\\|?.{0,20}\\|? ?[0-9]{0,20}/?[0-9]{0,3}( ?\\[.{0,9}(it/s|s/it))?") {
            if let Some(found) = bar(text.as_bytes()) {
                prop_assert!(found.percent <= 100);
            }
        }
    }
}
