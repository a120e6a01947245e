//! What a server says to a call: HTTP's status, gRPC's, its message and trailers, and the message of the answer.

use super::client::MOST_ANSWER_BYTES;
use super::header_block::HeaderList;

const PREFIX_BYTES: usize = 5;
/// What is kept of the words of a status.
const MOST_MESSAGE_BYTES: usize = 4096;

/// An answer. Where `grpc_status` is None the server, or what stands before it, speaks HTTP only.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status; 0 where there was none.
    pub http_status: u16,
    /// gRPC's status.
    pub grpc_status: Option<u32>,
    /// The words of the status.
    pub message: String,
    /// The other trailers.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The content type, where it is not that of gRPC.
    pub foreign_content_type: Option<String>,
    /// The answer's message was longer than any has a reason to be, and was not read.
    pub is_too_long: bool,
    received: Vec<u8>,
}

impl Answer {
    pub(super) fn read_status(&mut self, list: &HeaderList) {
        let status = list.get(":status").and_then(|status| std::str::from_utf8(status).ok());
        self.http_status = status.and_then(|status| status.parse().ok()).unwrap_or_default();
        let content_type = list.get("content-type").unwrap_or_default();
        self.foreign_content_type =
            (!content_type.starts_with(b"application/grpc")).then(|| String::from_utf8_lossy(content_type).into_owned());
    }

    pub(super) fn read_trailers(&mut self, list: &HeaderList) {
        let status = list.get("grpc-status").and_then(|status| std::str::from_utf8(status).ok());
        self.grpc_status = status.and_then(|status| status.parse().ok());
        self.message = percent_decoded(list.get("grpc-message").unwrap_or_default());
        let others = list.fields.iter().filter(|(name, _)| !name.starts_with(b":") && name != b"grpc-status" && name != b"grpc-message");
        self.trailers = others.cloned().collect();
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room_bytes = PREFIX_BYTES + MOST_ANSWER_BYTES - self.received.len();
        self.received.extend_from_slice(&bytes[..bytes.len().min(room_bytes)]);
        let told_bytes = self.received.get(1..).and_then(super::frame::read_u32).unwrap_or_default() as usize;
        self.is_too_long |= told_bytes > MOST_ANSWER_BYTES || bytes.len() > room_bytes;
    }

    /// The message of the answer, None where there is none that is whole; and whether it is compressed.
    pub fn body(&self) -> Option<(&[u8], bool)> {
        let (prefix, body) = self.received.split_at_checked(PREFIX_BYTES)?;
        let size_bytes = super::frame::read_u32(&prefix[1..])? as usize;
        Some((body.get(..size_bytes)?, prefix[0] & 1 != 0))
    }
}

fn percent_decoded(encoded: &[u8]) -> String {
    let mut bytes = Vec::new();
    let mut rest = &encoded[..encoded.len().min(MOST_MESSAGE_BYTES)];
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let digits = (byte == b'%').then(|| after.get(..2)).flatten();
        match digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
