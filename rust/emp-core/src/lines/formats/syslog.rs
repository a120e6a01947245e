//! Syslog as files have it: RFC 3164 without its priority (`Oct  9 08:53:20 host app[7]: text`), with an ISO time instead as rsyslog writes
//! it by default today, and both forms with it. What a message says is [`crate::syslog`]'s.

use super::Found;
use crate::lines::Fields;
use crate::normalize::severity;
use crate::syslog::{Form, Message, Parser, SEVERITIES, Value, When};

const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
/// What writes to a machine's log without saying its process.
const WITHOUT_PID: [&[u8]; 4] = [b"kernel", b"sudo", b"su", b"systemd"];

/// The fields of a line; None where it has neither a priority nor a time.
pub fn parse<'a>(line: &'a [u8], parser: &mut Parser, when: &When, fields: &mut Fields) -> Option<Found<'a>> {
    let message = parser.parse(line, when);
    (message.form != Form::Bare || message.priority.is_some()).then(|| put(&message, fields))
}

/// The same for a line of which nobody says that it is syslog.
pub fn by_look<'a>(line: &'a [u8], parser: &mut Parser, when: &When, fields: &mut Fields) -> Option<Found<'a>> {
    match line.first()? {
        b'<' => {
            let message = parser.parse(line, when);
            (message.priority.is_some() && message.form != Form::Bare).then(|| put(&message, fields))
        }
        b'0'..=b'9' => {
            let message = parser.parse(line, when);
            let is_app = !message.host.is_empty() && (!message.proc_id.is_empty() || WITHOUT_PID.contains(&message.app));
            (message.form == Form::Rfc3164 && is_app).then(|| put(&message, fields))
        }
        _ => {
            let month = line.first_chunk::<3>().filter(|_| line.get(3) == Some(&b' '))?;
            if !MONTHS.chunks(3).any(|name| name == month) {
                return None;
            }
            let message = parser.parse(line, when);
            (message.form == Form::Rfc3164 && !message.app.is_empty()).then(|| put(&message, fields))
        }
    }
}

fn put<'a>(message: &Message<'a>, fields: &mut Fields) -> Found<'a> {
    if let Some(time) = message.time_unix_nano {
        super::stamp::put_time(fields, time);
    }
    message.fields(|name, value| match value {
        _ if name == b"message" => {}
        Value::Text(text) => fields.text(name, text),
        Value::Int(number) => fields.int(name, number),
        Value::Texts(texts) => fields.texts(name, texts),
    });
    let severity = message.priority.map_or(0, |priority| severity::of_text(SEVERITIES[usize::from(priority & 7)].as_bytes()));
    Found { message: Some(message.body), severity }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{T, json};
    use super::*;

    const WHEN: When = When { now_unix_nano: T, utc_offset_s: 0, most_ahead_s: When::FILE_AHEAD_S };

    fn seen(line: &str) -> Option<(String, String)> {
        let mut fields = Fields::default();
        let found = by_look(line.as_bytes(), &mut Parser::default(), &WHEN, &mut fields)?;
        Some((json(&mut fields), String::from_utf8_lossy(found.message.unwrap()).into_owned()))
    }

    #[test]
    fn every_form_that_files_have_is_known_by_its_look() {
        let fields = r#""process.pid":7,"host.name":"gpu-1","service.name":"sshd""#;
        for line in ["Oct  9 08:53:20 gpu-1 sshd[7]: Accepted key", "2025-10-09T08:53:20.000000+00:00 gpu-1 sshd[7]: Accepted key"] {
            assert_eq!(seen(line), Some((format!(r#"{{"timestamp":{T},{fields}}}"#), "Accepted key".to_owned())), "{line}");
        }
        let level = r#""level":"info","syslog.facility":"authpriv""#;
        for line in ["<86>Oct  9 08:53:20 gpu-1 sshd[7]: Accepted key", "<86>1 2025-10-09T08:53:20Z gpu-1 sshd 7 - - Accepted key"] {
            assert_eq!(seen(line), Some((format!(r#"{{"timestamp":{T},{level},{fields}}}"#), "Accepted key".to_owned())), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_taken_for_syslog() {
        for line in [
            "",
            "May I ask: why",
            "Octopus",
            "<b>bold</b>",
            "<86>text",
            "2025-10-09T08:53:20Z Worker started: ok",
            "2025-10-09T08:53:20Z x",
        ] {
            assert_eq!(seen(line), None, "{line}");
        }
    }
}
