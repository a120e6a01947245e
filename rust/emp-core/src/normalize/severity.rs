//! Levels: OTLP severity numbers of every way in which loggers write a level.

/// The lowest severity number that counts as an error.
pub const ERROR: u8 = 17;

/// Names of up to eight bytes, as [`packed`] makes them, with their severity number. Sources: OTLP's data model (its appendix on syslog
/// and others), npm, Python, pino, log4j, glog and logcat letters.
const NAMES: &[(&str, u8)] = &[
    ("trace", 1),
    ("silly", 1),
    ("finest", 1),
    ("finer", 3),
    ("debug", 5),
    ("dbg", 5),
    ("fine", 5),
    ("verbose", 7),
    ("http", 8),
    ("info", 9),
    ("inf", 9),
    ("config", 9),
    ("log", 9),
    ("success", 9),
    ("notice", 10),
    ("warn", 13),
    ("warning", 13),
    ("wrn", 13),
    ("error", 17),
    ("err", 17),
    ("severe", 17),
    ("crit", 18),
    ("alert", 19),
    ("fatal", 21),
    ("critical", 21),
    ("emerg", 21),
    ("panic", 21),
    ("dpanic", 21),
    ("t", 1),
    ("d", 5),
    ("v", 7),
    ("i", 9),
    ("n", 10),
    ("w", 13),
    ("e", 17),
    ("c", 21),
    ("f", 21),
    ("a", 19),
];

/// Longer names.
const LONG_NAMES: &[(&str, u8)] = &[("information", 9), ("informational", 9), ("emergency", 21)];

const fn packed(name: &[u8]) -> u64 {
    let mut value = 0;
    let mut i = 0;
    while i < name.len() {
        value = value << 8 | (name[i] | 0x20) as u64;
        i += 1;
    }
    value
}

const SLOTS: usize = 256;

const fn slot(value: u64) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

/// Open addressing over the packed names, filled by the compiler.
const TABLE: [(u64, u8); SLOTS] = {
    let mut table = [(0, 0); SLOTS];
    let mut i = 0;
    while i < NAMES.len() {
        let value = packed(NAMES[i].0.as_bytes());
        let mut at = slot(value);
        while table[at].0 != 0 {
            at = (at + 1) % SLOTS;
        }
        table[at] = (value, NAMES[i].1);
        i += 1;
    }
    table
};

/// The severity number of a level's name in any case, or of digits; 0 when it is none.
#[inline]
pub fn of_text(text: &[u8]) -> u8 {
    if text.is_empty() {
        return 0;
    }
    if text.len() <= 8 {
        let value = packed(text);
        let mut at = slot(value);
        loop {
            let (name, severity) = TABLE[at];
            if name == value {
                return severity;
            }
            if name == 0 {
                break;
            }
            at = (at + 1) % SLOTS;
        }
        return match std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()) {
            Some(number) => of_number(number),
            None => 0,
        };
    }
    LONG_NAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes())).map_or(0, |(_, severity)| *severity)
}

/// The severity number of a level that is a number: syslog's 0 to 7, else pino's 10 to 60; 0 when it is none.
pub fn of_number(level: i64) -> u8 {
    match level {
        0 => 21,
        1 => 19,
        2 => 18,
        3 => 17,
        4 => 13,
        5 => 10,
        6 => 9,
        7 => 5,
        10..=19 => 1,
        20..=29 => 5,
        30..=39 => 9,
        40..=49 => 13,
        50..=59 => 17,
        60..=69 => 21,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case() {
        for (name, severity) in NAMES.iter().chain(LONG_NAMES) {
            assert_eq!(of_text(name.as_bytes()), *severity, "{name}");
            assert_eq!(of_text(name.to_uppercase().as_bytes()), *severity, "{name}");
        }
    }

    #[test]
    fn what_is_no_level_has_no_severity() {
        for text in ["", "infos", "warn!", "INFO ", "99", "-3", "verbosely", "\u{e9}rror"] {
            assert_eq!(of_text(text.as_bytes()), 0, "{text}");
        }
    }

    #[test]
    fn numbers_are_pinos_or_syslogs() {
        assert_eq!([10, 20, 30, 40, 50, 60].map(of_number), [1, 5, 9, 13, 17, 21]);
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(of_number), [21, 19, 18, 17, 13, 10, 9, 5]);
        assert_eq!(of_text(b"30"), 9);
    }
}
