//! A span as sampling sees it: read from its encoded message, and changed in its `trace_state` alone.

use super::threshold::Threshold;
use super::tracestate::{self, OtState};
use crate::otlp::fields::{span, status};
use crate::otlp::wire::{Reader, WireError, for_each_field, put_bytes};

/// What sampling reads of a span.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpanFacts {
    /// Zeros when absent or of the wrong length; the first one counts.
    pub trace_id: [u8; 16],
    /// Zeros when absent.
    pub start_unix_nano: u64,
    /// Zeros when absent.
    pub end_unix_nano: u64,
    /// Its status is an error.
    pub is_error: bool,
    /// It has no parent.
    pub is_root: bool,
    /// `ot=rv` of a well-formed tracestate.
    pub randomness: Option<u64>,
}

/// Reads a span; `attribute` is called with the raw `KeyValue` of each of its attributes.
#[inline(always)]
pub fn read_span<'a>(
    mut message: Reader<'a>,
    mut attribute: impl FnMut(Reader<'a>) -> Result<(), WireError>,
) -> Result<SpanFacts, WireError> {
    const fn tag(number: u32) -> u8 {
        (number << 3 | 2) as u8
    }
    const ATTRIBUTE: u8 = tag(span::ATTRIBUTES);
    const START: u8 = (span::START_TIME_UNIX_NANO << 3 | 1) as u8;
    const END: u8 = (span::END_TIME_UNIX_NANO << 3 | 1) as u8;
    let mut facts = SpanFacts { is_root: true, ..SpanFacts::default() };
    let mut has_id = false;
    // How almost every span begins; whatever is elsewhere is read below.
    if let Some(id) = message.short_message(tag(span::TRACE_ID)) {
        facts.trace_id = id.rest().try_into().unwrap_or_default();
        has_id = true;
    }
    message.short_message(tag(span::SPAN_ID));
    if let Some(state) = message.quick_message(tag(span::TRACE_STATE)) {
        facts.randomness = tracestate::read(state.rest()).randomness;
    }
    if let Some(parent) = message.short_message(tag(span::PARENT_SPAN_ID)) {
        facts.is_root = parent.rest().iter().all(|byte| *byte == 0);
    }
    message.quick_message(tag(span::NAME));
    loop {
        // Most of a span are its attributes.
        while let Some(pair) = message.quick_message(ATTRIBUTE) {
            attribute(pair)?;
        }
        if let Some(time) = message.quick_fixed64(START) {
            facts.start_unix_nano = time;
        }
        if let Some(time) = message.quick_fixed64(END) {
            facts.end_unix_nano = time;
            continue;
        }
        let Some(field) = message.next_field()? else { return Ok(facts) };
        match field.number {
            span::TRACE_ID if !has_id => {
                facts.trace_id = field.bytes().and_then(|id| id.try_into().ok()).unwrap_or_default();
                has_id = true;
            }
            span::TRACE_STATE => facts.randomness = tracestate::read(field.bytes().unwrap_or_default()).randomness,
            span::PARENT_SPAN_ID => facts.is_root = field.bytes().is_none_or(|id| id.iter().all(|byte| *byte == 0)),
            span::START_TIME_UNIX_NANO => facts.start_unix_nano = field.scalar().unwrap_or(0),
            span::END_TIME_UNIX_NANO => facts.end_unix_nano = field.scalar().unwrap_or(0),
            span::ATTRIBUTES => attribute(field.message())?,
            span::STATUS => for_each_field(field.message(), |field| {
                if field.number == status::CODE {
                    facts.is_error = field.scalar() == Some(status::CODE_ERROR);
                }
                Ok::<(), WireError>(())
            })?,
            _ => {}
        }
    }
}

/// The trace id of a span's message alone: it is the first field of almost every one. The first counts, here and in [`read_span`].
#[inline]
pub fn trace_id_of(message: &[u8]) -> Result<[u8; 16], WireError> {
    if let [0x0a, 16, rest @ ..] = message
        && let Some(id) = rest.first_chunk::<16>()
    {
        return Ok(*id);
    }
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        if field.number == span::TRACE_ID {
            return Ok(field.bytes().and_then(|id| id.try_into().ok()).unwrap_or_default());
        }
    }
    Ok([0; 16])
}

/// What became of a span's threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The tracestate now says the threshold.
    Changed,
    /// What it said before holds: it is as high, or none had to be said.
    Kept,
    /// The tracestate is malformed or full, and left as it is.
    Malformed,
}

/// Appends a span whose tracestate says at least `threshold`: one that was set upstream is never lowered. Everything but
/// that field is copied byte for byte; where nothing has to change all of it is.
pub fn write_with_threshold(message: &[u8], threshold: Threshold, out: &mut Vec<u8>) -> Result<Written, WireError> {
    let mut states = 0;
    let mut old: &[u8] = &[];
    // The old field, or the place before the first field that follows it by number.
    let mut place = None;
    let mut state = OtState::default();
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        if field.number == span::TRACE_STATE {
            states += 1;
            old = field.bytes().unwrap_or_default();
            state = tracestate::read(old);
            place = Some((field.offset, field.raw.len()));
        } else if field.number > span::TRACE_STATE && place.is_none() {
            place = Some((field.offset, 0));
        }
    }
    if states > 1 || state.malformed {
        out.extend_from_slice(message);
        return Ok(Written::Malformed);
    }
    if state.threshold.is_some_and(|set| set >= threshold) || threshold == Threshold::NEVER {
        out.extend_from_slice(message);
        return Ok(Written::Kept);
    }
    let mut text = Vec::with_capacity(old.len() + 24);
    if !tracestate::write_threshold(old, threshold, &mut text) {
        out.extend_from_slice(message);
        return Ok(Written::Malformed);
    }
    let (start, len) = place.unwrap_or((message.len(), 0));
    out.extend_from_slice(&message[..start]);
    put_bytes(out, span::TRACE_STATE, &text);
    out.extend_from_slice(&message[start + len..]);
    Ok(Written::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::wire::{put_fixed64, put_message, put_uint};
    use proptest::prelude::*;

    const ID: [u8; 16] = [7; 16];

    fn span_with(state: Option<&str>) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, span::TRACE_ID, &ID);
        put_bytes(&mut out, span::SPAN_ID, &[1; 8]);
        if let Some(state) = state {
            put_bytes(&mut out, span::TRACE_STATE, state.as_bytes());
        }
        put_bytes(&mut out, span::PARENT_SPAN_ID, &[2; 8]);
        put_bytes(&mut out, span::NAME, b"GET /");
        put_fixed64(&mut out, span::START_TIME_UNIX_NANO, 5);
        put_fixed64(&mut out, span::END_TIME_UNIX_NANO, 9);
        put_message(&mut out, span::STATUS, |out| put_uint(out, status::CODE, status::CODE_ERROR));
        put_bytes(&mut out, 99, b"unknown");
        out
    }

    fn with_threshold(state: Option<&str>, threshold: &str) -> (Vec<u8>, Written) {
        let mut out = Vec::new();
        let threshold = Threshold::parse(threshold.as_bytes()).unwrap();
        let written = write_with_threshold(&span_with(state), threshold, &mut out).unwrap();
        (out, written)
    }

    #[test]
    fn a_span_says_what_sampling_needs() {
        let facts = read_span(Reader::new(&span_with(Some("ot=rv:00000000000009"))), |_| Ok(())).unwrap();
        assert_eq!((facts.trace_id, facts.start_unix_nano, facts.end_unix_nano), (ID, 5, 9));
        assert!(facts.is_error && !facts.is_root);
        assert_eq!(facts.randomness, Some(9));
        assert!(read_span(Reader::new(&[]), |_| Ok(())).unwrap().is_root);
    }

    #[test]
    fn only_the_tracestate_of_a_span_changes() {
        assert_eq!(with_threshold(None, "e666"), (span_with(Some("ot=th:e666")), Written::Changed));
        assert_eq!(with_threshold(Some("a=b"), "e666"), (span_with(Some("ot=th:e666,a=b")), Written::Changed));
        assert_eq!(
            with_threshold(Some("ot=th:8;rv:00000000000009"), "c"),
            (span_with(Some("ot=th:c;rv:00000000000009")), Written::Changed)
        );
    }

    #[test]
    fn a_threshold_set_upstream_is_never_lowered() {
        for (state, threshold) in [("ot=th:f", "e666"), ("ot=th:e666", "e666"), ("ot=th:8,a=b", "0")] {
            assert_eq!(with_threshold(Some(state), threshold), (span_with(Some(state)), Written::Kept), "{state}");
        }
    }

    #[test]
    fn a_trace_kept_whole_says_th_0_only_where_no_threshold_stood() {
        assert_eq!(with_threshold(None, "0"), (span_with(Some("ot=th:0")), Written::Changed));
        assert_eq!(with_threshold(Some("ot=th:c"), "0").1, Written::Kept);
    }

    #[test]
    fn a_malformed_tracestate_is_left_as_it_is() {
        assert_eq!(with_threshold(Some("ot=th:XYZ"), "8"), (span_with(Some("ot=th:XYZ")), Written::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(message in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_span(Reader::new(&message), |_| Ok(()));
            let _ = trace_id_of(&message);
            let _ = write_with_threshold(&message, Threshold::ALWAYS, &mut Vec::new());
        }

        #[test]
        fn the_quick_look_at_a_trace_id_agrees_with_the_whole_reading(
            fields in proptest::collection::vec((1..20u32, proptest::collection::vec(any::<u8>(), 0..20)), 0..6), id: [u8; 16], first: bool
        ) {
            let mut message = Vec::new();
            if first {
                put_bytes(&mut message, span::TRACE_ID, &id);
            }
            for (number, bytes) in fields {
                put_bytes(&mut message, number, &bytes);
            }
            if let Ok(facts) = read_span(Reader::new(&message), |_| Ok(())) {
                prop_assert_eq!(trace_id_of(&message).unwrap(), facts.trace_id);
            }
        }
    }
}
