//! One message on its way out: what the peer's windows let through, in frames as long as it takes them.

use super::frame::{HEAD_BYTES, flag, kind, put_head};

/// Frames are no longer than so, whatever the peer takes: others have their turn between them.
const MOST_FRAME_BYTES: usize = 1 << 20;

/// A message with its five bytes of prefix.
pub(super) struct Outgoing<B> {
    prefix: [u8; 5],
    body: B,
    sent_bytes: usize,
    /// The last frame ends the stream.
    ends_stream: bool,
}

impl<B: AsRef<[u8]>> Outgoing<B> {
    /// None where a message cannot be so long.
    pub fn new(body: B, is_compressed: bool, ends_stream: bool) -> Option<Self> {
        let [a, b, c, d] = u32::try_from(body.as_ref().len()).ok()?.to_be_bytes();
        Some(Self { prefix: [is_compressed.into(), a, b, c, d], body, sent_bytes: 0, ends_stream })
    }

    fn left_bytes(&self) -> usize {
        self.prefix.len() + self.body.as_ref().len() - self.sent_bytes
    }

    pub fn is_sent(&self) -> bool {
        self.left_bytes() == 0
    }

    /// Writes what the windows let through, at most about `most_bytes`; the windows shrink by it.
    pub fn pump(&mut self, out: &mut Vec<u8>, stream: u32, windows: [&mut i64; 2], max_frame_bytes: usize, most_bytes: usize) {
        let [connection, own] = windows;
        let open_bytes = usize::try_from((*connection).min(*own)).unwrap_or_default();
        let mut may_bytes = self.left_bytes().min(open_bytes).min(most_bytes);
        let frame_bytes = max_frame_bytes.min(MOST_FRAME_BYTES);
        out.reserve(may_bytes + HEAD_BYTES * (may_bytes / frame_bytes + 1));
        *connection -= may_bytes as i64;
        *own -= may_bytes as i64;
        while may_bytes > 0 {
            let size_bytes = may_bytes.min(frame_bytes);
            let is_last = self.ends_stream && size_bytes == self.left_bytes();
            put_head(out, size_bytes, kind::DATA, if is_last { flag::END_STREAM } else { 0 }, stream);
            let of_prefix = size_bytes.min(self.prefix.len().saturating_sub(self.sent_bytes));
            out.extend_from_slice(&self.prefix[self.sent_bytes.min(5)..][..of_prefix]);
            let at = (self.sent_bytes + of_prefix).saturating_sub(self.prefix.len());
            out.extend_from_slice(&self.body.as_ref()[at..][..size_bytes - of_prefix]);
            self.sent_bytes += size_bytes;
            may_bytes -= size_bytes;
        }
    }
}
