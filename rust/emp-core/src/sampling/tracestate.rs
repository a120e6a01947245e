//! The `ot` member of a W3C tracestate: read for sampling, and changed in its `th` alone. Other vendors' members, `rv` and sub-keys that
//! we do not know stay as they came. Source: OpenTelemetry specification, "TraceState handling"; W3C Trace Context, "tracestate".

use super::threshold::{Threshold, parse_randomness};

/// W3C allows so many members.
const MAX_MEMBERS: usize = 32;
/// OpenTelemetry allows its own member's value so many bytes.
const MAX_VALUE_BYTES: usize = 256;

/// What a tracestate says to sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OtState {
    /// `th`: what was sampled before.
    pub threshold: Option<Threshold>,
    /// `rv`: the randomness, where it is not that of the trace id.
    pub randomness: Option<u64>,
    /// It breaks the rules: it is left as it is, and what could be read does not count.
    pub malformed: bool,
}

impl OtState {
    const MALFORMED: Self = Self { threshold: None, randomness: None, malformed: true };
}

/// One member of the list.
struct Member<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

fn trimmed(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |at| at + 1);
    &text[start..end]
}

/// The members that are not empty; an item is None where a member has no `=`.
fn members(text: &[u8]) -> impl Iterator<Item = Option<Member<'_>>> {
    text.split(|byte| *byte == b',').map(trimmed).filter(|member| !member.is_empty()).map(|member| {
        let at = member.iter().position(|byte| *byte == b'=')?;
        (at > 0).then(|| Member { key: &member[..at], value: &member[at + 1..] })
    })
}

/// The sub-keys of an `ot` value; an item is None where one has no `:`.
fn sub_keys(value: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    value.split(|byte| *byte == b';').map(|pair| {
        let at = pair.iter().position(|byte| *byte == b':')?;
        (at > 0).then(|| (&pair[..at], &pair[at + 1..]))
    })
}

/// Reads a tracestate. Most are empty or have no `ot`: those cost a look.
#[inline]
pub fn read(text: &[u8]) -> OtState {
    if text.is_empty() { OtState::default() } else { read_members(text) }
}

fn read_members(text: &[u8]) -> OtState {
    let mut state = OtState::default();
    let mut seen = false;
    for (index, member) in members(text).enumerate() {
        let Some(member) = member else { return OtState::MALFORMED };
        if index == MAX_MEMBERS {
            return OtState::MALFORMED;
        }
        if member.key != b"ot" {
            continue;
        }
        if seen || member.value.len() > MAX_VALUE_BYTES {
            return OtState::MALFORMED;
        }
        seen = true;
        for pair in sub_keys(member.value) {
            match pair {
                Some((b"th", value)) if state.threshold.is_none() => match Threshold::parse(value) {
                    Some(threshold) => state.threshold = Some(threshold),
                    None => return OtState::MALFORMED,
                },
                Some((b"rv", value)) if state.randomness.is_none() => match parse_randomness(value) {
                    Some(randomness) => state.randomness = Some(randomness),
                    None => return OtState::MALFORMED,
                },
                None | Some((b"th" | b"rv", _)) => return OtState::MALFORMED,
                Some(_) => {}
            }
        }
    }
    state
}

/// Appends a tracestate that says `th`, from one that [`read`] found well-formed; false (and nothing appended) where there is no room.
///
/// The `ot` member goes first, as W3C asks of one that was changed; the others keep their order and their bytes.
pub fn write_threshold(text: &[u8], threshold: Threshold, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let ours = members(text).flatten().find(|member| member.key == b"ot").map(|member| member.value);
    let others = || members(text).flatten().filter(|member| member.key != b"ot");
    if ours.is_none() && others().count() >= MAX_MEMBERS {
        return false;
    }
    out.extend_from_slice(b"ot=");
    let value_start = out.len();
    out.extend_from_slice(b"th:");
    threshold.write(out);
    for (key, value) in ours.into_iter().flat_map(sub_keys).flatten().filter(|(key, _)| *key != b"th") {
        out.push(b';');
        out.extend_from_slice(key);
        out.push(b':');
        out.extend_from_slice(value);
    }
    if out.len() - value_start > MAX_VALUE_BYTES {
        out.truncate(before);
        return false;
    }
    for member in others() {
        out.push(b',');
        out.extend_from_slice(member.key);
        out.push(b'=');
        out.extend_from_slice(member.value);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_threshold(text: &str, threshold: &str) -> Option<String> {
        let mut out = Vec::new();
        write_threshold(text.as_bytes(), Threshold::parse(threshold.as_bytes()).unwrap(), &mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn th_and_rv_are_found_among_other_members_and_sub_keys() {
        for text in ["ot=th:e666;rv:0123456789abcd", "a=1, ot=rv:0123456789abcd;x:y;th:e666 ,b=2", "ot=p:8;th:e666;rv:0123456789abcd;q:"] {
            let state = read(text.as_bytes());
            assert_eq!(state.threshold, Threshold::parse(b"e666"), "{text}");
            assert_eq!(state.randomness, Some(0x0001_2345_6789_abcd), "{text}");
            assert!(!state.malformed);
        }
        assert_eq!(read(b""), OtState::default());
        assert_eq!(read(b"vendor=th:8,other=rv:1"), OtState::default());
    }

    #[test]
    fn a_malformed_state_says_nothing_and_is_known_as_such() {
        let too_long = format!("ot=x:{}", "y".repeat(300));
        let too_many = (0..33).map(|at| format!("k{at}=v")).collect::<Vec<_>>().join(",");
        for text in [
            "ot=th:E666",
            "ot=th:",
            "ot=th:123456789012345",
            "ot=rv:123",
            "ot=rv:0123456789ABCD",
            "ot=th:8;th:4",
            "ot=th:8,ot=th:8",
            "ot=th",
            "ot=",
            "ot",
            "a,ot=th:8",
            "=1",
            "ot=th:8;",
            "ot=rv:0123456789abcd;rv:0123456789abcd",
            &too_long,
            &too_many,
        ] {
            assert_eq!(read(text.as_bytes()), OtState::MALFORMED, "{text}");
        }
    }

    #[test]
    fn th_is_written_and_everything_else_kept() {
        for (text, expected) in [
            ("", "ot=th:e666"),
            ("a=1,b=2", "ot=th:e666,a=1,b=2"),
            ("a=1,ot=th:8;rv:0123456789abcd,b=2", "ot=th:e666;rv:0123456789abcd,a=1,b=2"),
            ("ot=x:1;y:2;th:0", "ot=th:e666;x:1;y:2"),
            ("a@b=c=d , ot=rv:0123456789abcd", "ot=th:e666;rv:0123456789abcd,a@b=c=d"),
        ] {
            assert_eq!(with_threshold(text, "e666").as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn where_there_is_no_room_nothing_is_written() {
        let full = (0..32).map(|at| format!("k{at}=v")).collect::<Vec<_>>().join(",");
        assert_eq!(with_threshold(&full, "8"), None);
        assert_eq!(with_threshold(&format!("ot=x:{}", "y".repeat(254)), "e666"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_a_change_reads_back(text in proptest::collection::vec(any::<u8>(), 0..200), value in 0..1u64 << 56) {
            let (before, threshold) = (read(&text), Threshold::from_u64(value).unwrap());
            let mut out = Vec::new();
            if !before.malformed && write_threshold(&text, threshold, &mut out) {
                let after = read(&out);
                prop_assert_eq!(after, OtState { threshold: Some(threshold), ..before });
            }
        }

        #[test]
        fn members_of_other_vendors_keep_their_bytes_and_their_order(
            others in proptest::collection::vec("[a-n][a-z0-9_@*/-]{0,8}=[ -+--<>-~]{1,12}[a-z]", 0..30), at: prop::sample::Index, has_ot: bool
        ) {
            let mut all = others.clone();
            if has_ot {
                all.insert(at.index(others.len() + 1), "ot=rv:00000000000001;foo:bar".to_owned());
            }
            let mut out = Vec::new();
            prop_assert!(write_threshold(all.join(",").as_bytes(), Threshold::parse(b"c").unwrap(), &mut out));
            let ours = if has_ot { "ot=th:c;rv:00000000000001;foo:bar" } else { "ot=th:c" };
            let trimmed: Vec<String> = others.iter().map(|member| member.trim_matches([' ', '\t']).to_owned()).collect();
            let expected: Vec<&str> = std::iter::once(ours).chain(trimmed.iter().map(String::as_str)).collect();
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected.join(","));
        }
    }
}
