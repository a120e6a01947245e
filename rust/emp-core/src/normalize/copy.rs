//! The few unsafe primitives under the row writer: short copies in whole vectors, and looking for non-ASCII bytes on the way.
//!
//! A call of memcpy for every key and value would cost more than all other work on a record. So the writer keeps [`SLACK`] bytes of room
//! behind what it writes, and copies short pieces as one or two fixed blocks of 32 bytes; what it writes past the piece is overwritten next.

/// Room that must lie behind every piece written, and behind a source that is read in whole blocks.
pub const SLACK: usize = 64;

const HIGH: u64 = 0x8080_8080_8080_8080;

/// 32 bytes of high bits, then 32 of nothing: read at `32 - len` it masks the first `len` bytes of a block.
static MASK: [u8; 64] = {
    let mut mask = [0; 64];
    let mut i = 0;
    while i < 32 {
        mask[i] = 0x80;
        i += 1;
    }
    mask
};

/// The same with all bits.
static WHOLE_MASK: [u8; 64] = {
    let mut mask = [0; 64];
    let mut i = 0;
    while i < 32 {
        mask[i] = 0xff;
        i += 1;
    }
    mask
};

type Block = [u64; 4];

/// Copies `len` bytes and returns whether all of them are ASCII.
///
/// # Safety
/// `source` is readable for `len` bytes, and for 32 where `whole_blocks`; `target` is writable for `len + SLACK`; they do not overlap.
#[inline(always)]
pub unsafe fn copy_text(source: *const u8, target: *mut u8, len: usize, whole_blocks: bool) -> bool {
    // SAFETY: the caller's promise covers each read and write; blocks of 32 are read past `len` only where `whole_blocks` says so.
    unsafe {
        if len <= 32 && whole_blocks {
            let block = source.cast::<Block>().read_unaligned();
            target.cast::<Block>().write_unaligned(block);
            let mask = MASK.as_ptr().add(32 - len).cast::<Block>().read_unaligned();
            let high = (block[0] & mask[0]) | (block[1] & mask[1]) | (block[2] & mask[2]) | (block[3] & mask[3]);
            return high == 0;
        }
        if len < 32 {
            std::ptr::copy_nonoverlapping(source, target, len);
            return std::slice::from_raw_parts(source, len).is_ascii();
        }
        let mut high: Block = [0; 4];
        let mut at = 0;
        while at + 32 <= len {
            let block = source.add(at).cast::<Block>().read_unaligned();
            target.add(at).cast::<Block>().write_unaligned(block);
            for i in 0..4 {
                high[i] |= block[i];
            }
            at += 32;
        }
        // The tail as the last 32 bytes once more: some are copied twice.
        let block = source.add(len - 32).cast::<Block>().read_unaligned();
        target.add(len - 32).cast::<Block>().write_unaligned(block);
        for i in 0..4 {
            high[i] |= block[i];
        }
        (high[0] | high[1] | high[2] | high[3]) & HIGH == 0
    }
}

/// Copies 32 bytes.
///
/// # Safety
/// Both are valid for 32 bytes and do not overlap.
#[inline(always)]
pub unsafe fn copy_32(source: *const u8, target: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { target.cast::<Block>().write_unaligned(source.cast::<Block>().read_unaligned()) }
}

/// Whether the first `len` bytes (at most 32) of two blocks are the same.
///
/// # Safety
/// Both are readable for 32 bytes.
#[inline(always)]
pub unsafe fn same_32(a: *const u8, b: *const u8, len: usize) -> bool {
    debug_assert!(len <= 32);
    // SAFETY: the caller's promise; `len` is at most 32, so the mask is read within its table.
    unsafe {
        let (a, b) = (a.cast::<Block>().read_unaligned(), b.cast::<Block>().read_unaligned());
        let mask = WHOLE_MASK.as_ptr().add(32 - len).cast::<Block>().read_unaligned();
        let other = ((a[0] ^ b[0]) & mask[0]) | ((a[1] ^ b[1]) & mask[1]) | ((a[2] ^ b[2]) & mask[2]) | ((a[3] ^ b[3]) & mask[3]);
        other == 0
    }
}

/// Decodes `2 * N` hex digits of any case; None when one is none.
#[inline(always)]
pub fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    let mut bad = 0;
    for (eight, four) in text.chunks_exact(8).zip(out.chunks_exact_mut(4)) {
        let digits = u64::from_be_bytes(eight.try_into().unwrap_or_default());
        // Per byte: its value as a digit, or as a letter; each byte must be one of the two.
        let letters = (digits & 0x4040_4040_4040_4040) >> 6;
        let values = (digits & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9;
        bad |= not_hex(digits, values);
        let pairs = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
        let quads = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
        four.copy_from_slice(&((quads | quads >> 16) as u32).to_be_bytes());
    }
    (bad == 0).then_some(out)
}

/// Non-zero where a byte of `digits` is no hex digit, given the values that they would have.
#[inline(always)]
fn not_hex(digits: u64, values: u64) -> u64 {
    // Written back as lower case hex (digits as they are, letters with bit 5 set) the text must be itself.
    const ONES: u64 = 0x0101_0101_0101_0101;
    let tens = ((values + ONES * 6) >> 4) & ONES;
    let again = values + ONES * 0x30 + tens * 0x27;
    let lower = digits | ((digits & (ONES * 0x40)) >> 1);
    (again ^ lower) | (digits & HIGH) | (values & (ONES * 0xf0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_copied_and_every_high_byte_is_seen() {
        for len in 0..200 {
            for whole in [false, true] {
                let mut source: Vec<u8> = (0..len + 32).map(|i| (i % 100) as u8).collect();
                // Behind the text: must not count.
                source[len..].fill(0xff);
                let mut target = vec![0; len + SLACK];
                let ascii = unsafe { copy_text(source.as_ptr(), target.as_mut_ptr(), len, whole) };
                assert!(ascii, "{len}");
                assert_eq!(target[..len], source[..len]);
                for at in 0..len {
                    let mut source = source.clone();
                    source[at] |= 0x80;
                    assert!(!unsafe { copy_text(source.as_ptr(), target.as_mut_ptr(), len, whole) }, "{at} of {len}");
                }
            }
        }
    }

    #[test]
    fn hex_takes_hex_digits_and_nothing_else() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut text = *b"0123cdEF";
                text[place] = byte;
                let expected: Option<Vec<u8>> = std::str::from_utf8(&text)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .map(|text| u32::from_str_radix(text, 16).unwrap().to_be_bytes().to_vec());
                assert_eq!(hex::<4>(&text).map(|bytes| bytes.to_vec()), expected, "{byte:#x} at {place}");
            }
        }
        assert_eq!(hex::<8>(b"0123456789abcde"), None);
        assert_eq!(hex::<16>(b"00112233445566778899AABBccddeeff").unwrap()[10], 0xaa);
    }
}
