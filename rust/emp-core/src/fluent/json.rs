//! JSON mode: where a JSON text ends, and a message in JSON as one in msgpack.

use crate::error::CoreError;
use crate::normalize::json::to_msgpack;

/// A resumable walk to the end of one JSON array or object: every byte is looked at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JsonScan {
    pos: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonScan {
    /// Goes on; the end of the text when it is there.
    pub fn advance(&mut self, data: &[u8]) -> Result<Option<usize>, &'static str> {
        while let Some(&byte) = data.get(self.pos) {
            self.pos += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(self.pos));
                    }
                }
                0 => return Err("a zero byte in JSON"),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// A message in JSON as one in msgpack. An object alone is a record without tag and time.
pub fn message(text: &[u8]) -> Result<Vec<u8>, CoreError> {
    // [tag "", time nil, record]
    let mut out = if text.first() == Some(&b'{') { vec![0x93, 0xa0, 0xc0] } else { Vec::new() };
    to_msgpack(text, &mut out)?;
    Ok(out)
}
