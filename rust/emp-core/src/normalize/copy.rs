//! The few unsafe primitives under the row writer: short copies, comparisons and hex in whole blocks of 32 bytes.
//!
//! A call of memcpy for every key and value would cost more than all other work on a record. So the writer keeps [`SLACK`] bytes of room
//! behind what it writes and reads only where [`SLACK`] bytes lie behind; what is written past a piece is overwritten by the next one.
//! On x86-64 a block is two SSE2 registers (every such processor has them), elsewhere four words; a test holds both to the same results.

/// Room that lies behind every piece written, and readable bytes that lie behind every piece read.
pub const SLACK: usize = 64;
/// Bytes of a block.
pub const BLOCK: usize = 32;

/// The first `len` (up to 32) bits.
#[inline(always)]
fn first(len: usize) -> u32 {
    ((1u64 << len) - 1) as u32
}

#[cfg(target_arch = "x86_64")]
mod block {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi8, _mm_and_si128, _mm_cmpeq_epi8, _mm_cvtsi128_si64, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8,
        _mm_or_si128, _mm_packus_epi16, _mm_set1_epi8, _mm_set1_epi16, _mm_slli_epi16, _mm_srli_epi16, _mm_storeu_si128, _mm_sub_epi8,
    };

    /// 32 bytes in registers.
    #[derive(Clone, Copy)]
    pub struct Block(__m128i, __m128i);

    impl Block {
        /// # Safety
        /// 32 bytes are readable.
        #[inline(always)]
        pub unsafe fn load(source: *const u8) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self(_mm_loadu_si128(source.cast()), _mm_loadu_si128(source.add(16).cast())) }
        }

        /// # Safety
        /// 32 bytes are writable.
        #[inline(always)]
        pub unsafe fn store(self, target: *mut u8) {
            // SAFETY: the caller's promise.
            unsafe {
                _mm_storeu_si128(target.cast(), self.0);
                _mm_storeu_si128(target.add(16).cast(), self.1);
            }
        }

        /// By byte: its high bit.
        #[inline(always)]
        pub fn high_bits(self) -> u32 {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { _mm_movemask_epi8(self.0) as u32 | (_mm_movemask_epi8(self.1) as u32) << 16 }
        }

        /// By byte: whether it is the same in both.
        #[inline(always)]
        pub fn same_bits(self, other: Self) -> u32 {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { Self(_mm_cmpeq_epi8(self.0, other.0), _mm_cmpeq_epi8(self.1, other.1)).high_bits() }
        }

        /// By byte: whether it is `byte`.
        #[inline(always)]
        pub fn is_bits(self, byte: u8) -> u32 {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { self.same_bits(Self(_mm_set1_epi8(byte as i8), _mm_set1_epi8(byte as i8))) }
        }
    }

    /// 16 hex digits as 8 bytes.
    ///
    /// # Safety
    /// 16 bytes are readable.
    #[inline(always)]
    pub unsafe fn hex_16(text: *const u8) -> Option<[u8; 8]> {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe {
            let text: __m128i = _mm_loadu_si128(text.cast());
            let digit = _mm_sub_epi8(text, _mm_set1_epi8(b'0' as i8));
            let letter = _mm_sub_epi8(_mm_or_si128(text, _mm_set1_epi8(0x20)), _mm_set1_epi8(b'a' as i8));
            let is_digit = _mm_cmpeq_epi8(_mm_min_epu8(digit, _mm_set1_epi8(9)), digit);
            let is_letter = _mm_cmpeq_epi8(_mm_min_epu8(letter, _mm_set1_epi8(5)), letter);
            if _mm_movemask_epi8(_mm_or_si128(is_digit, is_letter)) != 0xffff {
                return None;
            }
            let letters = _mm_and_si128(is_letter, _mm_add_epi8(letter, _mm_set1_epi8(10)));
            let values = _mm_or_si128(_mm_and_si128(is_digit, digit), letters);
            // Pairs lie in 16 bits, the first digit low.
            let pairs = _mm_or_si128(_mm_slli_epi16(values, 4), _mm_srli_epi16(values, 8));
            let bytes = _mm_packus_epi16(_mm_and_si128(pairs, _mm_set1_epi16(0xff)), pairs);
            Some(_mm_cvtsi128_si64(bytes).to_ne_bytes())
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    /// 32 bytes.
    #[derive(Clone, Copy)]
    pub struct Block([u8; 32]);

    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    impl Block {
        /// # Safety
        /// 32 bytes are readable.
        #[inline(always)]
        pub unsafe fn load(source: *const u8) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self(source.cast::<[u8; 32]>().read_unaligned()) }
        }

        /// # Safety
        /// 32 bytes are writable.
        #[inline(always)]
        pub unsafe fn store(self, target: *mut u8) {
            // SAFETY: the caller's promise.
            unsafe { target.cast::<[u8; 32]>().write_unaligned(self.0) }
        }

        fn bits(self, test: impl Fn(u8) -> bool) -> u32 {
            self.0.iter().enumerate().fold(0, |bits, (index, byte)| bits | u32::from(test(*byte)) << index)
        }

        /// By byte: its high bit.
        #[inline(always)]
        pub fn high_bits(self) -> u32 {
            self.bits(|byte| byte >= 0x80)
        }

        /// By byte: whether it is the same in both.
        #[inline(always)]
        pub fn same_bits(self, other: Self) -> u32 {
            Self(std::array::from_fn(|index| u8::from(self.0[index] == other.0[index]))).bits(|same| same == 1)
        }

        /// By byte: whether it is `byte`.
        #[inline(always)]
        pub fn is_bits(self, byte: u8) -> u32 {
            self.bits(|this| this == byte)
        }
    }

    /// 16 hex digits as 8 bytes.
    ///
    /// # Safety
    /// 16 bytes are readable.
    #[inline(always)]
    pub unsafe fn hex_16(text: *const u8) -> Option<[u8; 8]> {
        // SAFETY: the caller's promise.
        let text = unsafe { text.cast::<[u8; 16]>().read_unaligned() };
        let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let mut out = [0; 8];
        for (pair, byte) in text.chunks_exact(2).zip(&mut out) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(out)
    }
}

#[cfg(target_arch = "x86_64")]
use block::{Block, hex_16};
#[cfg(not(target_arch = "x86_64"))]
use words::{Block, hex_16};

/// Copies `len` bytes and returns whether all of them are ASCII.
///
/// # Safety
/// `source` is readable and `target` writable for `len + BLOCK`; they do not overlap.
#[inline(always)]
pub unsafe fn copy_text(source: *const u8, target: *mut u8, len: usize) -> bool {
    let mut high = 0;
    let mut at = 0;
    loop {
        // SAFETY: `at` is at most `len`, so a block from there ends within `len + BLOCK`.
        let block = unsafe { Block::load(source.add(at)) };
        // SAFETY: likewise.
        unsafe { block.store(target.add(at)) };
        let left = len - at;
        if left <= BLOCK {
            return (high | block.high_bits() & first(left)) == 0;
        }
        high |= block.high_bits();
        at += BLOCK;
    }
}

/// Copies 32 bytes.
///
/// # Safety
/// Both are valid for 32 bytes and do not overlap.
#[inline(always)]
pub unsafe fn copy_block(source: *const u8, target: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { Block::load(source).store(target) }
}

/// Whether the first `len` bytes (at most 32) of two blocks are the same.
///
/// # Safety
/// Both are readable for 32 bytes.
#[inline(always)]
pub unsafe fn same_block(a: *const u8, b: *const u8, len: usize) -> bool {
    debug_assert!(len <= BLOCK);
    // SAFETY: the caller's promise.
    let same = unsafe { Block::load(a).same_bits(Block::load(b)) };
    !same & first(len) == 0
}

/// Whether `byte` is among the first `len` bytes (at most 32 are looked at).
///
/// # Safety
/// 32 bytes are readable.
#[inline(always)]
pub unsafe fn has_byte(text: *const u8, len: usize, byte: u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { Block::load(text) }.is_bits(byte) & first(len.min(BLOCK)) != 0
}

/// Decodes 16 or 32 hex digits of any case, as many as `N` bytes take; None when there are not that many or one is none.
#[inline(always)]
pub fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (digits, bytes) in text.chunks_exact(16).zip(out.chunks_exact_mut(8)) {
        // SAFETY: a chunk has 16 bytes.
        bytes.copy_from_slice(&unsafe { hex_16(digits.as_ptr()) }?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_copied_and_every_high_byte_is_seen() {
        for len in 0..200 {
            let mut source: Vec<u8> = (0..len + BLOCK).map(|i| (i % 100) as u8).collect();
            // Behind the text: must not count.
            source[len..].fill(0xff);
            let mut target = vec![0; len + BLOCK];
            let ascii = unsafe { copy_text(source.as_ptr(), target.as_mut_ptr(), len) };
            assert!(ascii, "{len}");
            assert_eq!(target[..len], source[..len]);
            for at in 0..len {
                let mut source = source.clone();
                source[at] |= 0x80;
                assert!(!unsafe { copy_text(source.as_ptr(), target.as_mut_ptr(), len) }, "{at} of {len}");
            }
        }
    }

    #[test]
    fn blocks_are_compared_up_to_their_length() {
        let text: [u8; 32] = std::array::from_fn(|index| index as u8);
        for len in 0..=32 {
            for at in 0..32 {
                let mut other = text;
                other[at] ^= 0x81;
                assert_eq!(unsafe { same_block(text.as_ptr(), other.as_ptr(), len) }, at >= len);
                assert_eq!(unsafe { has_byte(text.as_ptr(), len, at as u8) }, at < len);
            }
        }
    }

    #[test]
    fn hex_takes_hex_digits_and_nothing_else() {
        for byte in 0..=255u8 {
            for place in 0..16 {
                let mut text = *b"0123cdEF4567abAB";
                text[place] = byte;
                let expected = std::str::from_utf8(&text)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .map(|text| u64::from_str_radix(text, 16).unwrap().to_be_bytes());
                assert_eq!(hex::<8>(&text), expected, "{byte:#x} at {place}");
                assert_eq!(unsafe { words::hex_16(text.as_ptr()) }, expected, "{byte:#x} at {place}");
            }
        }
        assert_eq!(hex::<8>(b"0123456789abcde"), None);
        assert_eq!(hex::<16>(b"00112233445566778899AABBccddeeff").unwrap()[10], 0xaa);
        assert_eq!(hex::<16>(b"00112233445566778899AABBccddeefg"), None);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn both_kinds_of_block_agree() {
        for seed in 0..100u8 {
            let a: [u8; 32] = std::array::from_fn(|index| seed.wrapping_mul(37).wrapping_add((index as u8).wrapping_mul(11)));
            let b: [u8; 32] = std::array::from_fn(|index| if index % 3 == 0 { a[index] } else { a[index] ^ 1 });
            let (fast, plain) = unsafe { (Block::load(a.as_ptr()), words::Block::load(a.as_ptr())) };
            let (fast_b, plain_b) = unsafe { (Block::load(b.as_ptr()), words::Block::load(b.as_ptr())) };
            assert_eq!(fast.high_bits(), plain.high_bits());
            assert_eq!(fast.same_bits(fast_b), plain.same_bits(plain_b));
            assert_eq!(fast.is_bits(seed), plain.is_bits(seed));
        }
    }
}
