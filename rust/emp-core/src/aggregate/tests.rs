//! Properties: totals do not depend on the order of points nor on how they are cut into batches and windows, and no count is ever lost.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::emit::BlockForm;
use super::exponential::{Buckets, Exponential, index_of};
use super::histogram::Histogram;
use super::red::{Red, RedSettings};
use super::stats::Stats;
use super::{Aggregator, Settings, fields};
use crate::batch::{Batch, Signal, TableEntry};
use crate::block::{decode_block, encode_block};
use crate::compress::Codec;
use crate::otlp::value::{Scalar, put_key_value, put_scalar};
use crate::otlp::wire::{Reader, WireError, for_each_field, put_bytes, put_fixed64, put_message, put_uint};

const FORM: BlockForm<'_> = BlockForm { codec: Codec::None, level: 1, topic: "metrics", id_prefix: "b" };

fn stats(count: u64) -> Stats {
    Stats { count, sum: Some(count as f64), min: Some(1.0), max: Some(2.0) }
}

/// Counts and offsets small enough that no total overflows.
fn buckets() -> impl Strategy<Value = Buckets> {
    (-2000i64..2000, proptest::collection::vec(0u64..100, 0..40)).prop_map(|(offset, counts)| Buckets { offset, counts })
}

prop_compose! {
    fn exponential()(scale in -12i32..22, zero_count in 0u64..50, threshold in prop_oneof![Just(0.0), 1e-9..10.0f64],
                     positive in buckets(), negative in buckets()) -> Exponential {
        let mut one = Exponential { scale, zero_count, zero_threshold: threshold, positive, negative, ..Exponential::finest() };
        one.scale = scale;
        assert!(one.is_sound());
        one.stats = stats(total(&one));
        one
    }
}

prop_compose! {
    /// One as no SDK makes it: any scale, any offset, any threshold.
    fn wild_exponential()(scale in prop_oneof![any::<i32>(), 30..80i32, -12..22i32], threshold in prop_oneof![any::<f64>(), Just(1e-300)],
                          offsets in proptest::array::uniform2(prop_oneof![any::<i32>(), -5..5i32]), counts in proptest::collection::vec(0u64..9, 0..9))
                          -> Exponential {
        let [positive, negative] = offsets.map(|offset| Buckets { offset: i64::from(offset), counts: counts.clone() });
        Exponential { scale, zero_threshold: threshold.abs(), positive, negative, ..Exponential::finest() }
    }
}

fn total(one: &Exponential) -> u64 {
    one.zero_count + one.positive.counts.iter().sum::<u64>() + one.negative.counts.iter().sum::<u64>()
}

fn added(points: &[Exponential]) -> Exponential {
    let mut sum = points[0].clone();
    for point in &points[1..] {
        assert!(sum.absorb(point), "these fit together");
    }
    sum
}

/// A delta sum's row: points of (stream, value), with one attribute.
fn sum_row(points: &[(u8, i64)]) -> Vec<u8> {
    let mut row = Vec::new();
    put_bytes(&mut row, fields::metric::NAME, b"m");
    put_message(&mut row, fields::metric::SUM, |data| {
        for (stream, value) in points {
            put_message(data, fields::data::POINTS, |point| {
                let mut encoded = Vec::new();
                put_scalar(&mut encoded, Scalar::Int(i64::from(*stream)));
                put_key_value(point, fields::number::ATTRIBUTES, b"stream", &encoded);
                put_fixed64(point, fields::number::AS_INT, *value as u64);
            });
        }
        put_uint(data, fields::data::AGGREGATION_TEMPORALITY, fields::temporality::DELTA);
    });
    row
}

fn batch_of(row: &[u8]) -> Batch {
    let mut batch = Batch::new(Signal::Metrics);
    batch.resources.push(TableEntry::default());
    batch.scopes.push(TableEntry::default());
    batch.push_message(row, 0, 0).unwrap();
    batch
}

/// Adds the sums of a flushed window to `totals`, by the last byte of a point's attributes: the stream.
fn count_sums(aggregator: &mut Aggregator, totals: &mut BTreeMap<Vec<u8>, i128>) {
    for block in aggregator.flush(FORM).unwrap().blocks {
        let batch = decode_block(&block.header, &block.payload, 1 << 30).unwrap();
        for row in 0..batch.len() {
            for_each_field(Reader::new(batch.message(row)), |data| {
                if data.number != fields::metric::SUM {
                    return Ok::<(), WireError>(());
                }
                for_each_field(data.message(), |point| {
                    let (mut attributes, mut value) = (Vec::new(), 0i64);
                    for_each_field(point.message(), |field| {
                        match field.number {
                            fields::number::ATTRIBUTES => attributes.extend_from_slice(field.raw),
                            fields::number::AS_INT => value = field.scalar().unwrap_or(0) as i64,
                            _ => {}
                        }
                        Ok::<(), WireError>(())
                    })?;
                    if point.number == fields::data::POINTS {
                        *totals.entry(attributes).or_default() += i128::from(value);
                    }
                    Ok(())
                })
            })
            .unwrap();
        }
    }
}

proptest! {
    #[test]
    fn sums_are_the_same_however_points_are_cut_into_batches_and_windows(
        points in proptest::collection::vec((0u8..6, prop_oneof![any::<i64>(), -100i64..100]), 1..60),
        cuts in proptest::collection::vec((1usize..8, any::<bool>()), 60),
        max_streams in prop_oneof![Just(2000usize), Just(3)],
    ) {
        let mut wanted: BTreeMap<u8, i128> = BTreeMap::new();
        for (stream, value) in &points {
            *wanted.entry(*stream).or_default() += i128::from(*value);
        }
        let mut aggregator = Aggregator::new(Settings { max_streams, ..Settings::default() });
        let mut totals = BTreeMap::new();
        let mut rest = &points[..];
        let mut cuts = cuts.into_iter();
        while !rest.is_empty() {
            let (size, ends_window) = cuts.next().unwrap_or((60, false));
            let (batch, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let taken = aggregator.take(&batch_of(&sum_row(batch)));
            prop_assert_eq!((taken.points, taken.skipped), (batch.len() as u64, 0));
            if ends_window {
                count_sums(&mut aggregator, &mut totals);
            }
        }
        count_sums(&mut aggregator, &mut totals);
        prop_assert_eq!(totals.values().sum::<i128>(), wanted.values().sum::<i128>());
        if max_streams > 10 {
            prop_assert_eq!(totals.len(), wanted.len());
            let mut each: Vec<_> = totals.into_values().collect();
            let mut wanted: Vec<_> = wanted.into_values().collect();
            each.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(each, wanted);
        }
    }

    #[test]
    fn downscaling_keeps_every_count(mut side in buckets(), shift in 0u32..70) {
        let before: u64 = side.counts.iter().sum();
        side.downscale(shift);
        prop_assert_eq!(side.counts.iter().sum::<u64>(), before);
    }

    #[test]
    fn downscaling_by_steps_is_downscaling_at_once(side in buckets(), first in 0u32..8, then in 0u32..8) {
        let (mut by_steps, mut at_once) = (side.clone(), side);
        by_steps.downscale(first);
        by_steps.downscale(then);
        at_once.downscale(first + then);
        prop_assert_eq!(by_steps, at_once);
    }

    #[test]
    fn merging_exponential_histograms_loses_no_count(points in proptest::collection::vec(exponential(), 1..6)) {
        let sum = added(&points);
        prop_assert_eq!(total(&sum), points.iter().map(total).sum::<u64>());
        prop_assert_eq!(sum.stats.count, total(&sum));
        prop_assert!(sum.scale <= points.iter().map(|point| point.scale).min().unwrap());
        prop_assert!(sum.zero_threshold >= points.iter().map(|point| point.zero_threshold).fold(0.0, f64::max));
        prop_assert!(sum.positive.counts.len() <= 160 && sum.negative.counts.len() <= 160);
    }

    #[test]
    fn wild_exponential_histograms_are_merged_without_loss_or_stay_apart(mut one in wild_exponential(), mut other in wild_exponential()) {
        if one.is_sound() && other.is_sound() {
            let both = total(&one) + total(&other);
            if one.absorb(&other) {
                prop_assert_eq!(total(&one), both);
                for side in [&one.positive, &one.negative] {
                    prop_assert!(side.counts.is_empty() || i32::try_from(side.offset).is_ok());
                }
            }
        }
    }

    #[test]
    fn merging_exponential_histograms_is_commutative(one in exponential(), other in exponential()) {
        prop_assert_eq!(added(&[one.clone(), other.clone()]), added(&[other, one]));
    }

    #[test]
    fn merging_exponential_histograms_of_one_zero_threshold_is_associative_in_its_buckets(
        mut points in proptest::collection::vec(exponential(), 3)
    ) {
        for point in &mut points {
            point.zero_threshold = 0.0;
        }
        let [one, two, three] = &points[..] else { unreachable!() };
        let left = added(&[added(&[one.clone(), two.clone()]), three.clone()]);
        let right = added(&[one.clone(), added(&[two.clone(), three.clone()])]);
        // How much coarser a sum had to become may differ by the order; at the coarser scale of both they are the same.
        let scale = left.scale.min(right.scale);
        let at = |one: &Exponential| {
            let mut one = one.clone();
            one.positive.downscale((one.scale - scale) as u32);
            one.negative.downscale((one.scale - scale) as u32);
            (one.positive, one.negative, one.zero_count, one.stats)
        };
        prop_assert_eq!(at(&left), at(&right));
    }

    #[test]
    fn a_value_lies_in_the_bucket_that_is_named_for_it(value in 1e-300..1e300f64, scale in -10i32..10) {
        let index = index_of(value, scale) as f64;
        let base_log2 = (-f64::from(scale)).exp2();
        // Logarithms have no more digits than this.
        let slack = 1e-9 * (1.0 + value.log2().abs());
        prop_assert!(index * base_log2 <= value.log2() + slack);
        prop_assert!(value.log2() <= (index + 1.0) * base_log2 + slack);
    }

    #[test]
    fn merging_histograms_is_commutative_and_loses_no_count(
        counts in proptest::collection::vec(proptest::collection::vec(0u64..1000, 4), 2..6)
    ) {
        let points: Vec<Histogram> = counts.iter().map(|counts| {
            let count: u64 = counts.iter().sum();
            Histogram { stats: stats(count), bounds: vec![1.0, 2.0, 3.0], buckets: counts.clone() }
        }).collect();
        let added = |points: &mut dyn Iterator<Item = &Histogram>| {
            let mut sum = points.next().unwrap().clone();
            points.for_each(|point| assert!(sum.absorb(point)));
            sum
        };
        let (forwards, backwards) = (added(&mut points.iter()), added(&mut points.iter().rev()));
        prop_assert_eq!(&forwards.buckets, &backwards.buckets);
        prop_assert_eq!(forwards.buckets.iter().sum::<u64>(), counts.iter().flatten().sum::<u64>());
        prop_assert_eq!(forwards.stats.count, forwards.buckets.iter().sum::<u64>());
    }

    #[test]
    fn arbitrary_rows_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), data in proptest::sample::select(vec![5u32, 7, 9, 10, 11])) {
        let mut row = Vec::new();
        put_message(&mut row, data, |out| {
            put_bytes(out, fields::data::POINTS, &bytes);
            put_uint(out, fields::data::AGGREGATION_TEMPORALITY, u64::from(bytes.first().map_or(0, |byte| byte % 4)));
        });
        let mut aggregator = Aggregator::new(Settings::default());
        aggregator.take(&batch_of(&row));
        aggregator.take(&batch_of(&row));
        aggregator.flush(FORM).unwrap();
    }
}

#[test]
fn powers_of_two_are_the_last_value_of_their_bucket_at_every_scale() {
    for scale in -5..20 {
        for exponent in [-1000i32, -3, -1, 0, 1, 2, 7, 1000] {
            let index = index_of(2f64.powi(exponent), scale);
            let wanted = if scale >= 0 { (i64::from(exponent) << scale) - 1 } else { (i64::from(exponent) - 1) >> -scale };
            assert_eq!(index, wanted, "2^{exponent} at scale {scale}");
        }
    }
}

#[test]
fn a_zero_threshold_far_below_all_buckets_takes_none_of_them() {
    let side = |offset| Buckets { offset, counts: vec![1] };
    let mut one = Exponential { scale: 100, positive: side(5), negative: side(-5), ..Exponential::finest() };
    let other = Exponential { zero_threshold: 1e-300, ..one.clone() };
    assert!(one.absorb(&other));
    assert_eq!((one.zero_count, total(&one)), (0, 4));
}

#[test]
fn buckets_past_the_last_index_are_left_as_they_came() {
    let with = |offset, counts| Exponential { positive: Buckets { offset, counts }, ..Exponential::finest() };
    assert!(with(i64::from(i32::MAX), vec![1]).is_sound());
    assert!(!with(i64::from(i32::MAX), vec![0, 1]).is_sound());
}

#[test]
fn counts_past_a_u64_stay_at_its_end() {
    let mut histogram = Exponential::finest();
    for value in [1.05, 1.1, 1e9] {
        histogram.record(value, u64::MAX / 2 + 1);
    }
    assert_eq!(histogram.positive.counts.iter().max(), Some(&u64::MAX));
}

#[test]
fn a_block_that_is_not_as_long_as_its_header_says_is_not_counted() {
    let mut span = Vec::new();
    put_bytes(&mut span, 5, b"GET /");
    let batch = Batch { signal: Signal::Traces, ..batch_of(&span) };
    let mut block = encode_block(&[&batch], Codec::None, 1, "traces", "b").unwrap();
    let mut red = Red::new(RedSettings {
        namespace: "traces".to_owned(),
        bounds: None,
        milliseconds: false,
        dimensions: Vec::new(),
        max_names: 10,
        max_exemplars: 1,
    });
    assert_eq!(red.take(&block.header, &block.payload, 1 << 20, 1).unwrap().spans, 1);
    assert!(red.take(&block.header, &block.payload, 1, 1).is_err(), "over the limit");
    block.header.uncompressed_bytes += 1;
    assert!(red.take(&block.header, &block.payload, 1 << 20, 1).is_err(), "a byte is missing");
}
