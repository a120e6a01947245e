//! Compressed bodies, inflated piece by piece: a bomb costs no more memory than a piece.
//!
//! gzip may have several members and zstd several frames, one after another; both are one stream here.

use std::io::Write;

use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// Inflated bytes that one call adds at most, roughly: the size of a piece.
pub const PIECE_BYTES: usize = 256 << 10;
/// gzip inflates at most a thousandfold: so much input makes at most a piece.
const GZIP_STEP_BYTES: usize = PIECE_BYTES / 1024;
/// zstd windows above 32 MiB are refused: they would have to be kept in memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// Bodies whose size is known up to this are inflated in one go.
const WHOLE_BYTES: usize = 4 << 20;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952
    Gzip,
    /// RFC 8878
    Zstd,
}

/// What the first bytes of a body say, which goes before what the sender's option says.
pub fn sniff(body: &[u8]) -> Option<Compression> {
    match body {
        [0x1f, 0x8b, 8, ..] => Some(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
        // A zstd frame that is to be skipped may come first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Compression::Zstd),
        _ => None,
    }
}

/// A stream that is being inflated.
pub enum Inflater {
    /// Holds its output between calls.
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
    /// The decoder and whether it stands between two frames.
    Zstd(ZstdDecoder<'static>, bool),
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Gzip(_)) { "Inflater(gzip)" } else { "Inflater(zstd)" })
    }
}

impl Inflater {
    /// An inflater at the beginning of a stream.
    pub fn new(compression: Compression) -> std::io::Result<Self> {
        Ok(match compression {
            Compression::Gzip => Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new()))),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
                Self::Zstd(decoder, true)
            }
        })
    }

    /// Inflates the beginning of `input` onto `out`, about a piece at most; returns how much of `input` was used. All that can come out
    /// has come out when the whole input was used and nothing was added.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> std::io::Result<usize> {
        let mut used = 0;
        match self {
            Self::Gzip(decoder) => {
                let mut failed = None;
                while used < input.len() && decoder.get_ref().len() < PIECE_BYTES {
                    let step = &input[used..input.len().min(used + GZIP_STEP_BYTES)];
                    match decoder.write(step) {
                        Ok(0) => break,
                        Ok(len) => used += len,
                        Err(error) => {
                            failed = Some(error);
                            break;
                        }
                    }
                }
                let made = decoder.get_mut();
                out.extend_from_slice(made);
                made.clear();
                failed.map_or(Ok(used), Err)
            }
            Self::Zstd(decoder, between) => {
                let limit = out.len() + PIECE_BYTES;
                out.reserve(PIECE_BYTES);
                loop {
                    // Asked again after its end the decoder would say that it waits for another frame.
                    if (used == input.len() && *between) || out.len() >= limit {
                        return Ok(used);
                    }
                    let made = out.len();
                    let mut source = InBuffer::around(&input[used..]);
                    let mut target = OutBuffer::around_pos(out, made);
                    let hint = decoder.run(&mut source, &mut target)?;
                    let (read, written) = (source.pos(), target.pos() - made);
                    if read == 0 && written == 0 {
                        return Ok(used);
                    }
                    used += read;
                    *between = hint == 0;
                }
            }
        }
    }

    /// What is still to come out when all input is in; false when the stream ends in its middle.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Gzip(decoder) => {
                let whole = decoder.try_finish().is_ok();
                let made = decoder.get_mut();
                out.extend_from_slice(made);
                made.clear();
                whole
            }
            Self::Zstd(_, between) => *between,
        }
    }
}

/// A whole body inflated in one go onto `out`, where it says its size and that is moderate. False (and `out` as it was) means: use
/// an [`Inflater`], which also knows what is wrong.
pub fn whole(compression: Compression, body: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let known = match compression {
        Compression::Gzip => body.last_chunk::<4>().map(|size| u32::from_le_bytes(*size) as usize),
        Compression::Zstd => zstd::zstd_safe::get_frame_content_size(body).ok().flatten().and_then(|size| usize::try_from(size).ok()),
    };
    // No more than the codec can reach: a short body cannot claim memory.
    let limit = WHOLE_BYTES.min(body.len().saturating_mul(1100));
    let Some(known) = known.filter(|known| *known <= limit) else { return false };
    out.resize(start + known, 0);
    let target = &mut out[start..];
    let done = match compression {
        Compression::Gzip => gzip_member(body, target),
        Compression::Zstd => {
            zstd::bulk::Decompressor::new().and_then(|mut decoder| decoder.decompress_to_buffer(body, target)).ok() == Some(known)
        }
    };
    if !done {
        out.truncate(start);
    }
    done
}

/// Inflates a body that is one gzip member of exactly `out.len()` bytes; false when it is anything else.
fn gzip_member(body: &[u8], out: &mut [u8]) -> bool {
    thread_local! {
        static DECODER: std::cell::RefCell<Option<Decoder>> = const { std::cell::RefCell::new(None) };
    }
    DECODER.with_borrow_mut(|decoder| decoder.get_or_insert_with(Decoder::new).gzip_member(body, out))
}

/// libdeflate's decompressor. Its safe wrapper does not say how much input was used, which tells one member from several.
struct Decoder(*mut libdeflate_sys::libdeflate_decompressor);

impl Decoder {
    fn new() -> Self {
        // SAFETY: takes nothing; null means no memory and is never passed on.
        Self(unsafe { libdeflate_sys::libdeflate_alloc_decompressor() })
    }

    fn gzip_member(&mut self, body: &[u8], out: &mut [u8]) -> bool {
        if self.0.is_null() {
            return false;
        }
        let (mut used, mut made) = (0usize, 0usize);
        // SAFETY: the pointer came from libdeflate; both buffers are given with their lengths and outlive the call.
        let result = unsafe {
            libdeflate_sys::libdeflate_gzip_decompress_ex(
                self.0,
                body.as_ptr().cast(),
                body.len(),
                out.as_mut_ptr().cast(),
                out.len(),
                &raw mut used,
                &raw mut made,
            )
        };
        result == libdeflate_sys::libdeflate_result_LIBDEFLATE_SUCCESS && used == body.len() && made == out.len()
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: allocated by libdeflate, freed once; null is allowed.
        unsafe { libdeflate_sys::libdeflate_free_decompressor(self.0) }
    }
}
