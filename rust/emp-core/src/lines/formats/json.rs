//! What dialects of JSON lines call differently: structlog's `event` is the message, ECS nests or dots its names, and traces in a text
//! field are exceptions. Winston, pino and bunyan need nothing: the normaliser knows their names.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::exception;
use crate::fluent::cursor::{Cursor, Head};
use crate::lines::Fields;

static ECS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"ecs"));
static EVENT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"event\""));
static TRACEBACK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"Traceback (most recent call last)"));
/// Names under `error` and what they are.
const ECS_ERROR: [(&[u8], &[u8]); 3] =
    [(b"error.type", b"exception.type"), (b"error.message", b"exception.message"), (b"error.stack_trace", b"exception.stacktrace")];
/// ECS's maps that become dotted names; all others stay maps.
const ECS_MAPS: [&[u8]; 9] = [b"log", b"error", b"service", b"host", b"trace", b"span", b"process", b"event", b"ecs"];

/// Whether a line may be of a dialect that [`rewrite`] changes; true for all that are, and for little else.
#[inline]
pub fn may_be_dialect(line: &[u8]) -> bool {
    EVENT.find(line).is_some() || ECS.find(line).is_some() || TRACEBACK.find(line).is_some()
}

/// Writes a record anew, as a msgpack map with the schema's names; false where it can stay as it is.
pub fn rewrite(record: &[u8], fields: &mut Fields) -> bool {
    let Some(pairs) = pairs(record) else { return false };
    let has = |key: &[u8]| pairs.iter().any(|(name, _)| *name == key);
    let is_ecs = has(b"ecs.version") || has(b"ecs");
    let has_message = has(b"message") || has(b"msg") || has(b"log");
    let mut changed = false;
    for (key, value) in pairs {
        if is_ecs {
            changed = true;
            put_ecs(fields, key, value);
            continue;
        }
        if key == b"event" && !has_message && text(value).is_some() {
            changed = true;
            fields.raw(b"message", value);
            continue;
        }
        if matches!(key, b"exception" | b"exc_info" | b"exc_text" | b"stack" | b"traceback")
            && let Some(trace) = text(value)
            && TRACEBACK.find(trace).is_some()
        {
            changed = true;
            put_trace(fields, trace);
            continue;
        }
        fields.raw(key, value);
    }
    changed
}

fn put_trace(fields: &mut Fields, trace: &[u8]) {
    let found = exception::of(trace);
    if !found.kind.is_empty() {
        fields.text(b"exception.type", found.kind);
    }
    fields.text(b"exception.message", found.message);
    fields.text(b"exception.stacktrace", trace);
}

fn put_ecs(fields: &mut Fields, key: &[u8], value: &[u8]) {
    if ECS_MAPS.contains(&key)
        && let Some(inner) = pairs(value)
    {
        for (name, value) in inner {
            put_ecs(fields, &[key, b".", name].concat(), value);
        }
        return;
    }
    let name = match ECS_ERROR.iter().find(|(name, _)| *name == key) {
        Some((_, name)) => name,
        None if key == b"log.logger" => &b"logger"[..],
        None => key,
    };
    fields.raw(name, value);
}

/// The pairs of a map whose keys are all texts.
fn pairs(map: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut cursor = Cursor::new(map, 0);
    let Ok(Head::Map(count)) = cursor.head() else { return None };
    let mut pairs = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let key = cursor.text().ok()??;
        pairs.push((key, cursor.value().ok()?));
    }
    Some(pairs)
}

fn text(value: &[u8]) -> Option<&[u8]> {
    Cursor::new(value, 0).text().ok()?
}

#[cfg(test)]
mod tests {
    use super::super::testing::json;
    use super::*;
    use crate::normalize::json::to_msgpack;

    fn rewritten(line: &str) -> Option<String> {
        let mut record = Vec::new();
        to_msgpack(line.as_bytes(), &mut record).unwrap();
        let mut fields = Fields::default();
        let changed = rewrite(&record, &mut fields);
        assert!(!changed || may_be_dialect(line.as_bytes()), "{line}");
        changed.then(|| json(&mut fields))
    }

    #[test]
    fn structlogs_event_is_the_message_where_there_is_no_other() {
        let line = r#"{"event":"job done","level":"info","timestamp":"2025-10-09T08:53:20Z"}"#;
        let expected = r#"{"message":"job done","level":"info","timestamp":"2025-10-09T08:53:20Z"}"#;
        assert_eq!(rewritten(line).as_deref(), Some(expected));
        for line in [r#"{"event":"click","message":"x"}"#, r#"{"event":{"id":1}}"#, r#"{"message":"event"}"#] {
            assert_eq!(rewritten(line), None, "{line}");
        }
    }

    #[test]
    fn ecs_in_both_its_forms_gets_the_schemas_names() {
        for line in [
            r#"{"@timestamp":"t","log.level":"error","message":"m","ecs.version":"1.6.0","log.logger":"a.b","error.type":"E","error.message":"bad","error.stack_trace":"s"}"#,
            r#"{"@timestamp":"t","log":{"level":"error"},"message":"m","ecs":{"version":"1.6.0"},"log.logger":"a.b","error":{"type":"E","message":"bad","stack_trace":"s"}}"#,
        ] {
            let expected = r#"{"@timestamp":"t","log.level":"error","message":"m","ecs.version":"1.6.0","logger":"a.b","exception.type":"E","exception.message":"bad","exception.stacktrace":"s"}"#;
            assert_eq!(rewritten(line).as_deref(), Some(expected), "{line}");
        }
    }

    #[test]
    fn a_traceback_in_a_field_is_an_exception() {
        let line = r#"{"event":"failed","exception":"Traceback (most recent call last):\n  File \"x\", line 1, in f\nValueError: bad"}"#;
        let expected = r#"{"message":"failed","exception.type":"ValueError","exception.message":"bad","exception.stacktrace":"Traceback (most recent call last):\n  File \"x\", line 1, in f\nValueError: bad"}"#;
        assert_eq!(rewritten(line).as_deref(), Some(expected));
    }
}
