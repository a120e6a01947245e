//! Where one of many short shapes begins: four bytes are asked at once in tables of nibbles, 32 places at a time where the machine can.
//!
//! A shape is a set of bytes for each of its four places. Shapes share eight buckets; a place is reported with the buckets that have a
//! shape there. No step waits for the one before, which an automaton's do. Source of the idea: "Teddy" of Hyperscan.

/// How many bytes a shape looks at.
pub const WIDTH: usize = 4;
const BUCKETS: usize = 8;

/// The bytes that may be at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSet([u64; 4]);

impl ByteSet {
    /// Any byte, and the end of the text too.
    pub const ANY: Self = Self([u64::MAX; 4]);

    /// The bytes for which `is` says true.
    pub fn of(is: impl Fn(u8) -> bool) -> Self {
        let mut out = Self([0; 4]);
        for byte in (0..=255u8).filter(|byte| is(*byte)) {
            out.0[usize::from(byte) / 64] |= 1 << (byte % 64);
        }
        out
    }

    /// One letter, in both cases.
    pub fn letter(letter: u8) -> Self {
        Self::of(|byte| byte.eq_ignore_ascii_case(&letter))
    }

    /// One byte.
    pub fn byte(wanted: u8) -> Self {
        Self::of(|byte| byte == wanted)
    }

    /// The byte where there is one, or the small letter where it may be in both cases, with the bit that makes it small.
    pub fn one_byte(&self) -> Option<(u8, u8)> {
        let mut bytes = (0..=255u8).filter(|byte| self.has(*byte));
        match (self.len(), bytes.next(), bytes.next()) {
            (1, Some(byte), None) => Some((byte, 0)),
            (2, Some(capital), Some(small)) if capital.is_ascii_uppercase() && small == capital | 0x20 => Some((small, 0x20)),
            _ => None,
        }
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte) / 64] & 1 << (byte % 64) != 0
    }

    fn or(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    fn len(&self) -> u32 {
        self.0.iter().map(|bits| bits.count_ones()).sum()
    }
}

/// The bytes at the four places.
pub type Shape = [ByteSet; WIDTH];

/// Many shapes, ready to be looked for.
pub struct Fingerprints {
    /// For each place the buckets that a byte may belong to.
    exact: [[u8; 256]; WIDTH],
    low: [[u8; 16]; WIDTH],
    high: [[u8; 16]; WIDTH],
    vectors: bool,
}

impl Fingerprints {
    /// The tables, and the bucket of each shape.
    pub fn new(shapes: &[Shape]) -> (Self, Vec<usize>) {
        let mut buckets: [Option<Shape>; BUCKETS] = [None; BUCKETS];
        let mut numbers = Vec::with_capacity(shapes.len());
        for shape in shapes {
            let grown = |bucket: &Option<Shape>| bucket.map_or(*shape, |bucket| std::array::from_fn(|at| bucket[at].or(&shape[at])));
            let growth = |bucket: &Option<Shape>| likelihood(&grown(bucket)) - bucket.as_ref().map_or(0.0, likelihood);
            let number = (0..BUCKETS).min_by(|a, b| growth(&buckets[*a]).total_cmp(&growth(&buckets[*b]))).unwrap_or(0);
            buckets[number] = Some(grown(&buckets[number]));
            numbers.push(number);
        }
        let mut out = Self {
            exact: [[0; 256]; WIDTH],
            low: [[0; 16]; WIDTH],
            high: [[0; 16]; WIDTH],
            #[cfg(target_arch = "x86_64")]
            vectors: std::arch::is_x86_feature_detected!("avx2"),
            #[cfg(not(target_arch = "x86_64"))]
            vectors: false,
        };
        for (number, bucket) in buckets.iter().enumerate() {
            for (at, set) in bucket.iter().flatten().enumerate() {
                for byte in (0..=255u8).filter(|byte| set.has(*byte)) {
                    out.exact[at][usize::from(byte)] |= 1 << number;
                    out.low[at][usize::from(byte & 15)] |= 1 << number;
                    out.high[at][usize::from(byte >> 4)] |= 1 << number;
                }
            }
        }
        (out, numbers)
    }

    /// Tells `hit` each place with the buckets that have a shape there, in order; `hit` says from where to go on, behind that place.
    #[inline]
    pub fn scan(&self, data: &[u8], mut hit: impl FnMut(usize, u8) -> usize) {
        let mut at = 0;
        #[cfg(target_arch = "x86_64")]
        if self.vectors && data.len() >= 32 + WIDTH {
            // SAFETY: `vectors` says that this machine has what the function needs.
            at = unsafe { self.scan_avx2(data, &mut hit) };
        }
        while at < data.len() {
            let buckets = self.at(data, at);
            at = if buckets == 0 { at + 1 } else { hit(at, buckets).max(at + 1) };
        }
    }

    /// The buckets that have a shape at a place. Behind the end there is a zero, which is in no set but that of all bytes.
    #[inline]
    fn at(&self, data: &[u8], at: usize) -> u8 {
        let byte = |place: usize| data.get(at + place).copied().unwrap_or(0);
        (0..WIDTH).fold(0xff, |buckets, place| buckets & self.exact[place][usize::from(byte(place))])
    }

    /// [`Self::scan`] as far as whole vectors go; returns from where to go on.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn scan_avx2(&self, data: &[u8], hit: &mut impl FnMut(usize, u8) -> usize) -> usize {
        use std::arch::x86_64::{
            __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256,
            _mm256_movemask_epi8, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi16,
        };
        const LANES: usize = 32;
        // SAFETY: a table has the 16 bytes that are loaded.
        let table = |table: &[u8; 16]| _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
        let low: [__m256i; WIDTH] = [table(&self.low[0]), table(&self.low[1]), table(&self.low[2]), table(&self.low[3])];
        let high: [__m256i; WIDTH] = [table(&self.high[0]), table(&self.high[1]), table(&self.high[2]), table(&self.high[3])];
        let nibble = _mm256_set1_epi8(0x0f);
        let mut at = 0;
        while at + LANES + WIDTH - 1 <= data.len() {
            let mut buckets = _mm256_set1_epi8(-1);
            for place in 0..WIDTH {
                // SAFETY: the loop's condition leaves LANES bytes behind each of the WIDTH places.
                let bytes = unsafe { _mm256_loadu_si256(data.as_ptr().add(at + place).cast()) };
                let of_low = _mm256_shuffle_epi8(low[place], _mm256_and_si256(bytes, nibble));
                let of_high = _mm256_shuffle_epi8(high[place], _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble));
                buckets = _mm256_and_si256(buckets, _mm256_and_si256(of_low, of_high));
            }
            let mut found = !(_mm256_movemask_epi8(_mm256_cmpeq_epi8(buckets, _mm256_setzero_si256())) as u32);
            let mut next = at + LANES;
            while found != 0 {
                let place = at + found.trailing_zeros() as usize;
                found &= found - 1;
                let exact = self.at(data, place);
                if exact == 0 {
                    continue;
                }
                let go_on = hit(place, exact);
                if go_on >= at + LANES {
                    next = go_on;
                    break;
                }
                if go_on > place {
                    found &= u32::MAX << (go_on - at);
                }
            }
            at = next;
        }
        at
    }
}

/// How likely four bytes have the shape, were all bytes as likely.
fn likelihood(shape: &Shape) -> f64 {
    shape.iter().map(|set| f64::from(set.len()) / 256.0).product()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ByteSet, Fingerprints, Shape};

    fn shapes() -> Vec<Shape> {
        let letters = |text: &[u8; 4]| text.map(ByteSet::letter);
        let mut out: Vec<Shape> = [b"abab", b"bbaa", b"ccca", b"aabc", b"=bab", b"b=ac", b"caca", b"cbcb", b"acbc"].map(letters).to_vec();
        out.push([ByteSet::byte(b'a'), ByteSet::byte(b'='), ByteSet::ANY, ByteSet::ANY]);
        out
    }

    fn has(shape: &Shape, data: &[u8], at: usize) -> bool {
        shape.iter().enumerate().all(|(place, set)| set.has(data.get(at + place).copied().unwrap_or(0)))
    }

    proptest! {
        #[test]
        fn every_shape_is_reported_where_it_is_with_and_without_vectors(data in "[abcABC=]{0,150}") {
            let shapes = shapes();
            for vectors in [true, false] {
                let (mut fingerprints, numbers) = Fingerprints::new(&shapes);
                fingerprints.vectors &= vectors;
                let mut reported = vec![0u8; data.len()];
                let mut last = None;
                fingerprints.scan(data.as_bytes(), |at, buckets| {
                    assert!(last.is_none_or(|last| last < at), "places come in order, each once");
                    last = Some(at);
                    reported[at] = buckets;
                    at + 1
                });
                for (at, reported) in reported.iter().enumerate() {
                    for (shape, number) in shapes.iter().zip(&numbers) {
                        let told = reported & 1 << number != 0;
                        prop_assert!(!has(shape, data.as_bytes(), at) || told, "at {} of {:?}", at, data);
                    }
                }
            }
        }

        #[test]
        fn what_is_stepped_over_is_not_reported(data in "[ab=]{40,150}", step in 1usize..70) {
            let (fingerprints, _) = Fingerprints::new(&shapes());
            let mut least = 0;
            fingerprints.scan(data.as_bytes(), |at, _| {
                assert!(at >= least);
                least = at + step;
                least
            });
        }
    }

    #[test]
    fn a_shape_that_is_found_nowhere_is_not_reported() {
        let (fingerprints, _) = Fingerprints::new(&shapes());
        fingerprints.scan(&[b'x'; 500], |at, _| panic!("reported at {at}"));
        fingerprints.scan(b"", |at, _| panic!("reported at {at}"));
    }
}
