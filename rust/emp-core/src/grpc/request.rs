//! The headers of a call as a server reads them, and the words of its answer as a trailer carries them.

use super::header_block::HeaderList;

/// Why a call cannot be one of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The metadata is over its limit.
    MetadataTooLong,
    /// It is no POST: an answer in HTTP's words will do.
    Method,
    /// Its content type is another.
    ContentType,
}

/// The headers of a call.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// Its stream.
    pub stream: u32,
    /// The service and method.
    pub path: String,
    /// All headers.
    pub headers: HeaderList,
    /// What is wrong with it.
    pub problem: Option<Problem>,
}

/// Whether the headers are those of a request (None: no), and of one of gRPC.
pub(super) fn judge(list: &HeaderList) -> Option<Option<Problem>> {
    if list.is_cut {
        return Some(Some(Problem::MetadataTooLong));
    }
    let mut is_past_pseudo = false;
    let mut seen: [u32; 4] = [0; 4];
    for (name, value) in &list.fields {
        if let [b':', pseudo @ ..] = &name[..] {
            let known: [&[u8]; 4] = [b"method", b"scheme", b"path", b"authority"];
            let place = known.iter().position(|known| *known == pseudo)?;
            seen[place] += 1;
            if is_past_pseudo {
                return None;
            }
        } else {
            is_past_pseudo = true;
            let is_token = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
            if name.is_empty() || !name.iter().all(is_token) || matches!(&name[..], b"connection" | b"transfer-encoding" | b"upgrade") {
                return None;
            }
        }
        if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return None;
        }
    }
    if seen[..3] != [1, 1, 1] || seen[3] > 1 {
        return None;
    }
    if list.get(":method") != Some(b"POST") {
        return Some(Some(Problem::Method));
    }
    let content_type = list.get("content-type").unwrap_or_default();
    let rest = content_type.strip_prefix(b"application/grpc");
    let is_grpc = rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
    Some((!is_grpc).then_some(Problem::ContentType))
}

/// A message as a trailer carries it: printable ASCII, everything else and `%` as its bytes in hexadecimal.
pub(super) fn percent_encoded(message: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }
    out
}
