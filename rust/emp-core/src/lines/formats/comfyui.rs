//! What ComfyUI prints: its console's `[timestamp] message`, `[LEVEL] message`, how long a prompt took, what failed while it ran.
//! Its progress bars are in [`super::progress`].

use super::stamp::{Times, put_level};
use super::{Found, bracketed};
use crate::lines::Fields;

const EXECUTED: &[u8] = b"Prompt executed in ";
const FAILED: &[u8] = b"!!! Exception during processing";

/// The fields of a line; None where it says nothing beyond its text.
pub fn parse<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    if line.first() == Some(&b'[') {
        let found = bracketed::parse(line, times, fields)?;
        let severity = found.message.map_or(0, |message| said(message, found.severity, fields));
        return Some(Found { severity, ..found });
    }
    let before = fields.len();
    let severity = said(line, 0, fields);
    (fields.len() > before).then_some(Found { message: Some(line), severity })
}

/// Writes what a message says; returns its severity.
pub fn said(message: &[u8], severity: u8, fields: &mut Fields) -> u8 {
    if let Some(rest) = message.strip_prefix(EXECUTED) {
        if let Some(duration_ms) = duration_ms(rest) {
            fields.float(b"duration_ms", duration_ms);
        }
    } else if message.starts_with(FAILED) && severity == 0 {
        return put_level(fields, b"ERROR");
    }
    severity
}

/// `5.23 seconds`, or `0:01:02` from ten minutes on.
fn duration_ms(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text.get(..text.len().min(40))?).ok()?;
    if let Some(seconds) = text.trim_end().strip_suffix(" seconds") {
        let seconds: f64 = seconds.parse().ok()?;
        return (seconds.is_finite() && seconds >= 0.0).then_some(seconds * 1000.0);
    }
    let mut seconds = 0.0;
    let mut parts = 0;
    for part in text.trim_end().split(':') {
        seconds = seconds * 60.0 + f64::from(part.parse::<u32>().ok()?);
        parts += 1;
    }
    (parts == 3).then_some(seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{T, parsed};
    use super::*;

    #[test]
    fn how_long_a_prompt_took_and_what_failed_are_fields() {
        for (line, fields, message) in [
            ("Prompt executed in 5.25 seconds", r#"{"duration_ms":5250.0}"#.to_owned(), "Prompt executed in 5.25 seconds"),
            ("Prompt executed in 00:10:02", r#"{"duration_ms":602000.0}"#.to_owned(), "Prompt executed in 00:10:02"),
            ("!!! Exception during processing !!! bad", r#"{"level":"ERROR"}"#.to_owned(), "!!! Exception during processing !!! bad"),
            (
                "[2025-10-09 08:53:20.000] Prompt executed in 1 seconds",
                format!(r#"{{"timestamp":{T},"duration_ms":1000.0}}"#),
                "Prompt executed in 1 seconds",
            ),
            ("[INFO] ready", r#"{"level":"INFO"}"#.to_owned(), "ready"),
        ] {
            assert_eq!(parsed(parse, line), Some((fields, Some(message.to_owned()))), "{line}");
        }
        for line in ["", "got prompt", "[ComfyUI-Manager] x", "Prompt executed in no time"] {
            assert_eq!(parsed(parse, line), None, "{line}");
        }
    }
}
