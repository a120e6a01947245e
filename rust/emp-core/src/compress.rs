//! Whole bodies in and out of gzip and zstd. Compressors and scratch memory are reused per thread; inflation has a cap.
//!
//! Streams that arrive in pieces are inflated elsewhere ([`crate::fluent`]).

use std::cell::RefCell;
use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::error::{CoreError, ErrorKind};

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not at all.
    None,
    /// RFC 1952; several members may follow one another.
    Gzip,
    /// RFC 8878; several frames may follow one another.
    Zstd,
}

impl Codec {
    /// The name in headers, configuration and Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The codec of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Zstd].into_iter().find(|codec| codec.name() == name)
    }
}

/// Scratch memory over this is given back after use, so that one huge body does not stay in every thread.
const KEEP_SCRATCH_BYTES: usize = 4 << 20;
/// What an unknown inflated size is allowed to take before a byte has been inflated.
const FIRST_RESERVE_BYTES: usize = 1 << 20;
/// zstd windows above 128 MiB are refused, as zstd's own tools do: a few bytes may ask for one of gigabytes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

#[derive(Default)]
struct Scratch {
    gzip: Option<(i32, libdeflater::Compressor)>,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    out: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static RAW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static GUNZIP: RefCell<libdeflater::Decompressor> = RefCell::new(libdeflater::Decompressor::new());
    static UNZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = RefCell::new(zstd::bulk::Decompressor::new().ok());
}

/// Writes a body into memory that this thread reuses, hands it to `read`, and keeps the memory.
pub fn with_raw_scratch<T>(write: impl FnOnce(&mut Vec<u8>), read: impl FnOnce(&[u8]) -> T) -> T {
    RAW.with_borrow_mut(|raw| {
        raw.clear();
        write(raw);
        let result = read(raw);
        if raw.capacity() > KEEP_SCRATCH_BYTES {
            *raw = Vec::new();
        }
        result
    })
}

/// A body compressed. `level` 1 is meant for telemetry; the codec's own scale otherwise. `None` copies.
pub fn compress(codec: Codec, level: i32, data: &[u8]) -> Vec<u8> {
    if codec == Codec::None {
        return data.to_vec();
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let len = match codec {
            Codec::Gzip => gzip(scratch, level, data),
            _ => zstd(scratch, level, data),
        };
        let result = scratch.out[..len].to_vec();
        if scratch.out.capacity() > KEEP_SCRATCH_BYTES {
            scratch.out = Vec::new();
        }
        result
    })
}

fn gzip(Scratch { gzip, out, .. }: &mut Scratch, level: i32, data: &[u8]) -> usize {
    let level = level.clamp(0, 12);
    gzip.take_if(|(of, _)| *of != level);
    let (_, compressor) = gzip.get_or_insert_with(|| {
        let setting = libdeflater::CompressionLvl::new(level).unwrap_or(libdeflater::CompressionLvl::fastest());
        (level, libdeflater::Compressor::new(setting))
    });
    let bound = compressor.gzip_compress_bound(data.len());
    if out.len() < bound {
        out.resize(bound, 0);
    }
    // Too little room is the only error that there is; whatever bytes these are, they take no more than the bound.
    compressor.gzip_compress(data, out).expect("the output has the bound's size")
}

fn zstd(Scratch { zstd, out, .. }: &mut Scratch, level: i32, data: &[u8]) -> usize {
    let level = level.clamp(1, 22);
    zstd.take_if(|(of, _)| *of != level);
    // Fails for want of memory alone, as every allocation may.
    let (_, compressor) = zstd.get_or_insert_with(|| (level, zstd::bulk::Compressor::new(level).expect("a level in range")));
    let bound = zstd::zstd_safe::compress_bound(data.len());
    if out.len() < bound {
        out.resize(bound, 0);
    }
    // Likewise: the bound holds for any bytes.
    compressor.compress_to_buffer(data, out.as_mut_slice()).expect("the output has the bound's size")
}

/// A body inflated to at most `max_bytes`: more, of a body from outside ([`ErrorKind::BodyInvalid`]), is [`ErrorKind::TooLarge`].
/// `known_bytes` is its size where the caller knows it: then nothing is grown or guessed.
pub fn decompress(codec: Codec, data: &[u8], max_bytes: usize, known_bytes: Option<usize>, kind: ErrorKind) -> Result<Vec<u8>, CoreError> {
    let over = if kind == ErrorKind::BodyInvalid { ErrorKind::TooLarge } else { kind };
    let too_large = || CoreError::new(over, 0, format!("a body inflates to more than {max_bytes} bytes"));
    if known_bytes.is_some_and(|known| known > max_bytes) || (codec == Codec::None && data.len() > max_bytes) {
        return Err(too_large());
    }
    if let Some(known) = known_bytes.filter(|&known| codec != Codec::None && plausible(known, data.len()))
        && let Some(out) = decompress_known(codec, data, known)
    {
        return Ok(out);
    }
    let mut out = Vec::with_capacity(data.len().saturating_mul(4).min(FIRST_RESERVE_BYTES).min(max_bytes));
    // One byte over the cap tells a body that is too large from one that fits exactly.
    let cap = (max_bytes as u64).saturating_add(1);
    let read = match codec {
        Codec::None => {
            out.extend_from_slice(data);
            Ok(0)
        }
        Codec::Gzip => flate2::read::MultiGzDecoder::new(data).take(cap).read_to_end(&mut out),
        Codec::Zstd => zstd::stream::read::Decoder::with_buffer(data).and_then(|mut decoder| {
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            decoder.take(cap).read_to_end(&mut out)
        }),
    };
    read.map_err(|error| CoreError::new(kind, 0, format!("{}: the body cannot be inflated ({error})", codec.name())))?;
    if out.len() > max_bytes {
        return Err(too_large());
    }
    Ok(out)
}

/// Whether deflate or zstd could reach a size at all; a header that claims more must not make us take the memory.
fn plausible(known_bytes: usize, compressed_bytes: usize) -> bool {
    known_bytes <= compressed_bytes.saturating_mul(1100).saturating_add(4096)
}

fn decompress_known(codec: Codec, data: &[u8], known: usize) -> Option<Vec<u8>> {
    let mut out = vec![0; known];
    let len = match codec {
        Codec::Gzip => GUNZIP.with_borrow_mut(|gunzip| gunzip.gzip_decompress(data, &mut out)).ok()?,
        _ => UNZSTD.with_borrow_mut(|unzstd| unzstd.as_mut()?.decompress_to_buffer(data, out.as_mut_slice()).ok())?,
    };
    (len == known).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [Codec; 3] = [Codec::None, Codec::Gzip, Codec::Zstd];

    proptest! {
        #[test]
        fn every_codec_gives_back_what_it_was_given(
            data in proptest::collection::vec(any::<u8>(), 0..5000), level in 1..6i32, known: bool
        ) {
            for codec in CODECS {
                let packed = compress(codec, level, &data);
                let size = known.then_some(data.len());
                prop_assert_eq!(&decompress(codec, &packed, 5000, size, ErrorKind::BodyInvalid).unwrap(), &data);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..500), known in proptest::option::of(0..9000usize)) {
            for codec in CODECS {
                let _ = decompress(codec, &data, 4096, known, ErrorKind::BodyInvalid);
            }
        }
    }

    #[test]
    fn members_and_frames_after_one_another_are_all_read() {
        for codec in [Codec::Gzip, Codec::Zstd] {
            let mut packed = compress(codec, 1, b"one ");
            packed.extend(compress(codec, 1, b"two"));
            assert_eq!(decompress(codec, &packed, 100, None, ErrorKind::BodyInvalid).unwrap(), b"one two");
            assert_eq!(decompress(codec, &packed, 100, Some(7), ErrorKind::BodyInvalid).unwrap(), b"one two");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_cap() {
        for codec in [Codec::Gzip, Codec::Zstd] {
            let packed = compress(codec, 1, &vec![0; 10 << 20]);
            let error = decompress(codec, &packed, 1 << 20, None, ErrorKind::BodyInvalid).unwrap_err();
            assert!(error.detail.contains("more than 1048576 bytes"), "{error}");
        }
    }
}
