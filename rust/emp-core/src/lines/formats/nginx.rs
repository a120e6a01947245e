//! nginx: the access log (`combined`, which Apache writes too, and what follows it) and the error log.

use super::Found;
use super::stamp::{Times, put_level, put_time};
use crate::lines::Fields;

/// The fields of a line of the access log; the message is the request.
pub fn access<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    let (client, rest) = split_at(line, b" ")?;
    let (_, rest) = split_at(rest, b" ")?;
    // A user's name may hold spaces, not brackets.
    let (user, rest) = split_at(rest, b" [")?;
    let (time, rest) = split_at(rest, b"] \"")?;
    let time = times.of_web(time)?;
    let (request, rest) = quoted(rest)?;
    let (status, rest) = split_at(rest.trim_ascii_start(), b" ")?;
    let status = number(status).filter(|status| (100..=999).contains(status))?;
    let (size, rest) = split_at(rest, b" ").unwrap_or((rest, b""));
    put_time(fields, time);
    // 4xx are the clients' faults, 5xx the server's.
    let level: &[u8] = match status {
        500.. => b"error",
        400.. => b"warn",
        _ => b"info",
    };
    let severity = put_level(fields, level);
    put_some(fields, b"client.address", client);
    put_some(fields, b"user.name", user);
    put_request(fields, request);
    fields.int(b"http.response.status_code", status);
    if let Some(size) = number(size) {
        fields.int(b"http.response.body.size", size);
    }
    let mut rest = rest.trim_ascii_start();
    let mut keys = [&b"http.request.header.referer"[..], b"user_agent.original", b"http.request.header.x-forwarded-for"].into_iter();
    while let Some(inside) = rest.strip_prefix(b"\"") {
        let (Some((value, after)), Some(key)) = (quoted(inside), keys.next()) else { break };
        put_some(fields, key, value);
        rest = after.trim_ascii_start();
    }
    put_some(fields, b"nginx.rest", rest);
    Some(Found { message: Some(request), severity })
}

/// The fields of a line of the error log.
pub fn error<'a>(line: &'a [u8], times: &mut Times, fields: &mut Fields) -> Option<Found<'a>> {
    let stamp = times.at(line).filter(|_| line[4] == b'/')?;
    let (level, rest) = split_at(line[stamp.len..].strip_prefix(b" [")?, b"] ")?;
    let (ids, mut rest) = split_at(rest, b": ")?;
    let (pid, thread) = split_at(ids, b"#")?;
    let (pid, thread) = (number(pid)?, number(thread)?);
    if !matches!(level, b"debug" | b"info" | b"notice" | b"warn" | b"error" | b"crit" | b"alert" | b"emerg") {
        return None;
    }
    put_time(fields, stamp.time_unix_nano);
    let severity = put_level(fields, level);
    fields.int(b"process.pid", pid);
    fields.int(b"thread.id", thread);
    if let Some((connection, after)) = rest.strip_prefix(b"*").and_then(|rest| split_at(rest, b" "))
        && let Some(connection) = number(connection)
    {
        fields.int(b"nginx.connection_id", connection);
        rest = after;
    }
    let message_len = memchr::memmem::find(rest, b", client: ").unwrap_or(rest.len());
    let (message, mut details) = rest.split_at(message_len);
    while let Some((key, after)) = details.strip_prefix(b", ").and_then(|details| split_at(details, b": ")) {
        let name: &[u8] = match key {
            b"client" => b"client.address",
            b"server" => b"server.address",
            b"upstream" => b"nginx.upstream",
            b"host" => b"http.request.header.host",
            b"referrer" => b"http.request.header.referer",
            b"subrequest" => b"nginx.subrequest",
            b"request" => b"",
            _ => b"nginx.rest",
        };
        let value;
        (value, details) = match after.strip_prefix(b"\"").and_then(quoted) {
            Some(parts) if name != b"nginx.rest" => parts,
            _ if name == b"nginx.rest" => (&details[2..], &b""[..]),
            _ => after.split_at(memchr::memmem::find(after, b", ").unwrap_or(after.len())),
        };
        if name.is_empty() {
            put_request(fields, value);
        } else {
            put_some(fields, name, value);
        }
    }
    put_some(fields, b"nginx.rest", details);
    Some(Found { message: Some(message), severity })
}

/// A request line's method, path, query and version; what is no request line is kept as it is.
fn put_request(fields: &mut Fields, request: &[u8]) {
    let mut parts = request.split(|byte| *byte == b' ');
    let is_method = |method: &&[u8]| !method.is_empty() && method.len() <= 16 && method.iter().all(u8::is_ascii_uppercase);
    let (Some(method), Some(target), version, None) = (parts.next().filter(is_method), parts.next(), parts.next(), parts.next()) else {
        return put_some(fields, b"http.request.line", request);
    };
    fields.text(b"http.request.method", method);
    let (path, query) = split_at(target, b"?").unwrap_or((target, b""));
    put_some(fields, b"url.path", path);
    put_some(fields, b"url.query", query);
    if let Some(version) = version.and_then(|version| version.strip_prefix(b"HTTP/")) {
        fields.text(b"network.protocol.version", version);
    }
}

fn put_some(fields: &mut Fields, key: &[u8], value: &[u8]) {
    if !value.is_empty() && value != b"-" {
        fields.text(key, value);
    }
}

/// What is before and behind the first `separator`.
fn split_at<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = memchr::memmem::find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

/// The text up to the quote that ends it, and what is behind it. nginx writes a quote inside as `\x22`, Apache as `\"`.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some((&text[..at], &text[at + 1..]));
        }
        at += 2;
    }
}

fn number(text: &[u8]) -> Option<i64> {
    let is_number = !text.is_empty() && text.len() <= 18 && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| text.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{T, parsed};
    use super::*;

    #[test]
    fn an_access_line_becomes_attributes_of_the_semantic_conventions() {
        let line = r#"10.0.0.7 - ann [09/Oct/2025:08:53:20 +0000] "GET /jobs?id=7 HTTP/1.1" 502 312 "http://x/" "curl/8.5 (\x22)" 0.123"#;
        let (fields, message) = parsed(access, line).unwrap();
        assert_eq!(message.as_deref(), Some("GET /jobs?id=7 HTTP/1.1"));
        let expected = r#""level":"error","client.address":"10.0.0.7","user.name":"ann","http.request.method":"GET","url.path":"/jobs","url.query":"id=7","network.protocol.version":"1.1","http.response.status_code":502,"http.response.body.size":312,"http.request.header.referer":"http://x/","user_agent.original":"curl/8.5 (\\x22)","nginx.rest":"0.123""#;
        assert_eq!(fields, format!(r#"{{"timestamp":{T},{expected}}}"#));
        let line = r#"::1 - - [09/Oct/2025:08:53:20 +0000] "\x16\x03" 400 0 "-" "-""#;
        let expected = r#""level":"warn","client.address":"::1","http.request.line":"\\x16\\x03","http.response.status_code":400,"http.response.body.size":0"#;
        assert_eq!(parsed(access, line).unwrap().0, format!(r#"{{"timestamp":{T},{expected}}}"#));
        assert!(parsed(access, r#"h - - [09/Oct/2025:08:53:20 +0000] "GET / HTTP/1.0" 200 -"#).is_some());
    }

    #[test]
    fn an_error_line_keeps_its_message_and_its_details() {
        let line = r#"2025/10/09 08:53:20 [error] 12#34: *56 connect() failed (111: Connection refused) while connecting to upstream, client: 10.0.0.7, server: _, request: "POST /v1/logs HTTP/1.1", upstream: "http://127.0.0.1:4318/v1/logs", host: "x.y""#;
        let (fields, message) = parsed(error, line).unwrap();
        assert_eq!(message.as_deref(), Some("connect() failed (111: Connection refused) while connecting to upstream"));
        let expected = r#""level":"error","process.pid":12,"thread.id":34,"nginx.connection_id":56,"client.address":"10.0.0.7","server.address":"_","http.request.method":"POST","url.path":"/v1/logs","network.protocol.version":"1.1","nginx.upstream":"http://127.0.0.1:4318/v1/logs","http.request.header.host":"x.y""#;
        assert_eq!(fields, format!(r#"{{"timestamp":{T},{expected}}}"#));
        let (fields, message) = parsed(error, "2025/10/09 08:53:20 [notice] 1#1: start worker processes").unwrap();
        assert_eq!(message.as_deref(), Some("start worker processes"));
        assert_eq!(fields, format!(r#"{{"timestamp":{T},"level":"notice","process.pid":1,"thread.id":1}}"#));
    }

    #[test]
    fn what_is_no_line_of_nginx_is_none() {
        for line in ["", "a b c", "2025/10/09 08:53:20 message", "2025-10-09 08:53:20 [error] 1#1: x", "2025/10/09 08:53:20 [odd] 1#1: x"] {
            assert_eq!(parsed(error, line), None, "{line}");
        }
        for line in [
            "",
            "a b c [",
            r#"a - - [09/Oct/2025:08:53:20 +0000] "GET"#,
            r#"a - - [soon] "GET / HTTP/1.0" 200 1"#,
            r#"a - - [09/Oct/2025:08:53:20 +0000] "x" abc 1"#,
        ] {
            assert_eq!(parsed(access, line), None, "{line}");
        }
    }
}
