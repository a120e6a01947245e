//! RFC 5424's structured data: `[id name="value" …]` once or more, or `-`.

use std::borrow::Cow;

/// The elements at the front, and the body behind them; None where they cannot be followed.
pub(super) fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if let [b'-', rest @ ..] = text {
        return match rest {
            [] => Some((b"", b"")),
            [b' ', body @ ..] => Some((b"", body)),
            _ => None,
        };
    }
    if text.is_empty() {
        return Some((b"", b"")); // a header that ends with its MSGID is forgiven
    }
    let mut at = 0;
    while text.get(at) == Some(&b'[') {
        at = element_end(text, at)?;
    }
    match text.get(at) {
        _ if at == 0 => None,
        None => Some((text, b"")),
        Some(b' ') => Some((&text[..at], &text[at + 1..])),
        Some(_) => None,
    }
}

fn name_end(text: &[u8], at: usize) -> Option<usize> {
    let len = text[at..].iter().take_while(|byte| byte.is_ascii_graphic() && !matches!(byte, b'=' | b']' | b'"' | b'[')).count();
    (len > 0).then_some(at + len)
}

fn value_end(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The end of the element that begins at `at`.
fn element_end(text: &[u8], at: usize) -> Option<usize> {
    let mut at = name_end(text, at + 1)?;
    loop {
        match text.get(at)? {
            b']' => return Some(at + 1),
            b' ' => {}
            _ => return None,
        }
        at += 1;
        if text.get(at) == Some(&b']') {
            return Some(at + 1); // a space too many
        }
        at = name_end(text, at)?;
        if text.get(at..at + 2)? != b"=\"" {
            return None;
        }
        at = value_end(text, at + 2)? + 1;
    }
}

/// Calls `each` with element id, name and value of every parameter, in their order; an element without any with no name. `elements` is
/// what [`split`] found.
pub(super) fn each(elements: &[u8], mut each: impl FnMut(&[u8], &[u8], Cow<'_, [u8]>)) {
    let mut at = 0;
    while elements.get(at) == Some(&b'[') {
        let Some(id_end) = name_end(elements, at + 1) else { return };
        let id = &elements[at + 1..id_end];
        at = id_end;
        let mut any = false;
        loop {
            while elements.get(at) == Some(&b' ') {
                at += 1;
            }
            if elements.get(at) == Some(&b']') {
                at += 1;
                break;
            }
            let Some(end) = name_end(elements, at) else { return };
            let Some(close) = value_end(elements, end + 2) else { return };
            each(id, &elements[at..end], unescaped(&elements[end + 2..close]));
            any = true;
            at = close + 1;
        }
        if !any {
            each(id, b"", Cow::Borrowed(b""));
        }
    }
}

/// Of a backslash only those before `"`, `\` and `]` are no part of the value.
fn unescaped(value: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', value).is_none() {
        return Cow::Borrowed(value);
    }
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        if value[at] == b'\\' && matches!(value.get(at + 1), Some(b'"' | b'\\' | b']')) {
            at += 1;
        }
        out.push(value[at]);
        at += 1;
    }
    Cow::Owned(out)
}
