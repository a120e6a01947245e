//! The sampler against a model that knows everything at once: how spans are split into blocks, when the sampler ticks, and when it is
//! killed must not show in what comes out.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::super::threshold::Threshold;
use super::*;
use crate::compress::Codec;
use world::{FLEET, Row, SECOND_NS, World, block_of, id_of, settings};

#[path = "tail_world.rs"]
mod world;

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u8, bool)>),
    Take,
    Tick { at_once: bool, committed: bool },
    Wait(u8),
    Restart,
    Stale,
}

fn step(restarts: bool) -> BoxedStrategy<Step> {
    let append = proptest::collection::vec((0..12u8, proptest::bool::weighted(0.05)), 1..6).prop_map(Step::Append);
    let tick = (proptest::bool::weighted(0.1), proptest::bool::weighted(if restarts { 0.8 } else { 1.0 }));
    let tick = tick.prop_map(|(at_once, committed)| Step::Tick { at_once, committed });
    if restarts {
        prop_oneof![4 => append, 3 => Just(Step::Take), 3 => tick, 2 => (0..20u8).prop_map(Step::Wait), 1 => Just(Step::Restart),
            1 => Just(Step::Stale)]
        .boxed()
    } else {
        prop_oneof![4 => append, 3 => Just(Step::Take), 3 => tick, 2 => (0..20u8).prop_map(Step::Wait)].boxed()
    }
}

/// Runs the steps; returns the world and all rows that were appended.
fn run(settings: TailSettings, steps: &[Step]) -> (World, Vec<Row>) {
    let mut world = World::new(settings);
    let (mut rows, mut offset) = (Vec::<Row>::new(), 0);
    for step in steps {
        match step {
            Step::Append(new) => {
                offset += 1;
                let first = rows.len() as u64;
                rows.extend(new.iter().enumerate().map(|(at, (trace, is_error))| Row {
                    trace: *trace,
                    number: first + at as u64,
                    is_error: *is_error,
                }));
                world.append(&rows[first as usize..], offset);
            }
            Step::Take => world.take(),
            Step::Tick { at_once, committed } => match world.tick(*at_once) {
                Some(tick) if *committed => world.commit(tick),
                Some(_) => world.restart(), // killed between emit and commit
                None => {}
            },
            Step::Wait(seconds) => world.now_ns += i64::from(*seconds) * SECOND_NS,
            Step::Restart => world.restart(),
            Step::Stale => world.restore(),
        }
    }
    world.run_out();
    (world, rows)
}

fn check_whole(world: &World, rows: &[Row]) -> Result<(), TestCaseError> {
    let sent: BTreeSet<u64> = world.sent.iter().copied().collect();
    prop_assert_eq!(sent.len(), world.sent.len(), "a span was sent twice");
    prop_assert_eq!(world.sent.len() as u64 + world.skipped, rows.len() as u64, "the books of blocks and spans");
    let mut kept: HashMap<u8, BTreeSet<bool>> = HashMap::new();
    for row in rows {
        kept.entry(row.trace).or_default().insert(sent.contains(&row.number));
    }
    for (trace, verdicts) in kept {
        prop_assert_eq!(verdicts.len(), 1, "trace {} was sent in part", trace);
        let is_kept = verdicts.contains(&true);
        let chance = Threshold::of_percent(50.0).unwrap().keeps(randomness_of(&id_of(trace)));
        let has_error = rows.iter().any(|row| row.trace == trace && row.is_error);
        prop_assert!(is_kept || !chance, "trace {} has the randomness to be kept", trace);
        prop_assert!(!is_kept || chance || has_error, "trace {} had nothing to be kept for", trace);
    }
    Ok(())
}

proptest! {
    #[test]
    fn whatever_is_killed_when_every_trace_is_sent_whole_and_once_or_never(steps in proptest::collection::vec(step(true), 0..80)) {
        let (world, rows) = run(settings(FLEET), &steps);
        check_whole(&world, &rows)?;
    }

    #[test]
    fn with_little_memory_traces_are_decided_early_and_still_whole(steps in proptest::collection::vec(step(true), 0..60), held: bool) {
        let mut settings = settings(FLEET);
        if held { settings.max_held_bytes = 300 } else { settings.max_open_bytes = 3_000 }
        let (world, rows) = run(settings, &steps);
        check_whole(&world, &rows)?;
    }

    #[test]
    fn a_trace_is_decided_alike_however_its_spans_are_split_into_blocks(
        rows in proptest::collection::vec((0..20u8, proptest::bool::weighted(0.1)), 1..60), cuts in proptest::collection::vec(1..8usize, 60)
    ) {
        let mut whole = Vec::new();
        for cut in [false, true] {
            let mut rest = &rows[..];
            let mut steps = Vec::new();
            for size in &cuts {
                let (now, later) = rest.split_at(if cut { (*size).min(rest.len()) } else { rest.len() });
                steps.push(Step::Append(now.to_vec()));
                rest = later;
            }
            steps.push(Step::Take);
            let (mut world, _) = run(settings(FLEET), &steps);
            world.sent.sort_unstable();
            whole.push(world.sent);
        }
        prop_assert_eq!(&whole[0], &whole[1]);
    }

    #[test]
    fn what_is_no_request_is_given_back_and_harms_nobody(
        garbage in proptest::collection::vec(any::<u8>(), 1..200), rows in proptest::collection::vec((0..9u8, any::<bool>()), 1..9)
    ) {
        let mut world = World::new(settings(FLEET));
        let mut broken = block_of(&[Row { trace: 1, number: 99, is_error: false }], 7);
        let mut request = crate::block::inflate(&broken.header, &broken.payload, 1 << 20).unwrap();
        request.extend_from_slice(&garbage);
        broken.header.codec = Codec::None;
        broken.header.uncompressed_bytes = request.len() as u64;
        let refused = world.sampler.take(1, &broken.header, &request, world.now_ns).is_err();
        if refused {
            prop_assert_eq!(world.sampler.held_blocks(), 0);
            let rows: Vec<Row> = rows.iter().zip(0..).map(|((trace, is_error), number)| Row { trace: *trace, number, is_error: *is_error }).collect();
            world.taken_through = 1;
            world.append(&rows, 2);
            world.run_out();
            check_whole(&world, &rows)?;
            prop_assert_eq!(world.sampler.blocks.memory_bytes() / 200, 0, "a refused block stays for ever");
        }
    }
}

#[test]
fn a_decision_is_forgotten_and_its_value_deleted_when_late_spans_can_come_no_more() {
    let mut world = World::new(TailSettings { late_ns: 300 * SECOND_NS, ..settings(FLEET) });
    world.append(&[Row { trace: 7, number: 1, is_error: true }], 1);
    world.run_out();
    assert_eq!(world.sampler.decided_traces(), 0);
    assert_eq!(world.values.len(), 1, "a single value is not worth a commit of its own");
    world.append(&[Row { trace: 8, number: 2, is_error: true }], 2);
    world.run_out();
    assert_eq!(world.values.len(), 1, "the first value went with the second commit");
}

#[test]
fn the_least_used_decisions_are_forgotten_when_there_are_too_many() {
    let mut settings = settings(FLEET);
    settings.max_decided_bytes = 5 * Traces::DECIDED_BYTES;
    let mut world = World::new(settings);
    for trace in 0..50 {
        world.append(&[Row { trace, number: u64::from(trace), is_error: true }], u64::from(trace) + 1);
        world.take();
        let tick = world.tick(false).unwrap();
        world.commit(tick);
    }
    world.append(&[Row { trace: 99, number: 99, is_error: true }], 100);
    world.take();
    let tick = world.tick(false).unwrap();
    world.commit(tick);
    assert!(world.sampler.decided_traces() <= 6, "{}", world.sampler.decided_traces());
    assert!(world.values.len() <= 7, "values of forgotten decisions stay: {}", world.values.len());
}

#[test]
fn a_clock_that_is_set_back_makes_no_trace_wait_for_longer() {
    let mut world = World::new(settings(FLEET));
    world.append(&[Row { trace: 0, number: 1, is_error: false }, Row { trace: 7, number: 2, is_error: false }], 1);
    world.take();
    for _ in 0..2 {
        world.now_ns += 14 * SECOND_NS;
        assert!(world.tick(false).is_none());
    }
    world.now_ns -= 86_400 * SECOND_NS;
    assert!(world.tick(false).is_none());
    world.now_ns += 2 * SECOND_NS;
    let tick = world.tick(false).expect("30 seconds have passed");
    world.commit(tick);
    assert!(world.log.is_empty());
}

#[test]
fn an_error_decides_nothing_where_no_policy_keeps_it() {
    let mut world = World::new(settings(r#"[{"name": "slow", "type": "slow", "min_duration_ns": 1}]"#));
    world.append(&[Row { trace: 0, number: 1, is_error: true }], 1);
    world.take();
    assert_eq!((world.sampler.open_traces(), world.sampler.counts().by_policy[0]), (0, (1, 1)), "it is slow too");
    let mut world = World::new(settings(r#"[{"name": "slow", "type": "slow", "min_duration_ns": 2}]"#));
    world.append(&[Row { trace: 0, number: 1, is_error: true }], 1);
    world.take();
    assert_eq!(world.sampler.open_traces(), 1, "what is still to come may make it slow");
}

fn step_with(world: &mut World, offset: u64, rows: &[Row]) {
    world.append(rows, offset);
    world.take();
    if let Some(tick) = world.tick(false) {
        world.commit(tick);
    }
}

/// Decides so many traces that the memory for decisions overflows.
fn flood(world: &mut World) {
    for trace in 20..60 {
        step_with(world, u64::from(trace), &[Row { trace, number: u64::from(trace), is_error: true }]);
    }
}

fn forgetful() -> World {
    World::new(TailSettings { max_decided_bytes: 3 * Traces::DECIDED_BYTES, ..settings(FLEET) })
}

#[test]
fn a_decision_is_not_forgotten_before_the_rows_of_a_held_block_have_followed_it() {
    let mut world = forgetful();
    let kept = Row { trace: 6, number: 1, is_error: false };
    assert!(randomness_of(&id_of(kept.trace)) >= 1 << 55, "by its id");
    step_with(&mut world, 1, &[kept]);
    world.now_ns += 20 * SECOND_NS;
    step_with(&mut world, 2, &[Row { number: 2, ..kept }, Row { trace: 0, number: 3, is_error: false }]);
    world.now_ns += 10 * SECOND_NS;
    flood(&mut world);
    assert!(!world.sent.contains(&2), "its block waits for the other trace in it");
    world.run_out();
    assert!(world.sent.contains(&2), "a row of a kept trace was left out: its decision had been forgotten");
    assert!(world.sampler.decided_traces() <= 4);
}

#[test]
fn a_decision_is_not_forgotten_while_a_restart_would_bring_rows_of_its_trace_again() {
    let mut world = forgetful();
    let kept = Row { trace: 1, number: 1, is_error: true };
    step_with(&mut world, 1, &[kept]);
    step_with(&mut world, 2, &[Row { number: 2, is_error: false, ..kept }, Row { trace: 0, number: 3, is_error: false }]);
    assert_eq!(world.sent, [1, 2], "the late row is sent though its block is held");
    flood(&mut world);
    world.restart();
    world.run_out();
    assert_eq!(world.sent.iter().filter(|number| **number <= 2).count(), 2, "the late row was sent twice");
    assert_eq!(world.skipped, 1);
}

#[test]
fn blocks_with_open_traces_are_opened_for_errors_at_a_bounded_rate_and_the_rest_comes_with_them() {
    let mut world = World::new(TailSettings { max_trace_spans: 1 << 20, ..settings(FLEET) });
    for offset in 1..=25 {
        let mut rows = vec![Row { trace: 0, number: offset, is_error: false }; 1000];
        rows[7] = Row { trace: 100 + offset as u8, number: 1000 + offset, is_error: true };
        world.append(&rows, offset);
    }
    world.take();
    for sent in [10, 20, 25, 25] {
        if let Some(tick) = world.tick(false) {
            world.commit(tick);
        }
        assert_eq!(world.sent.len(), sent);
        world.now_ns += SECOND_NS;
    }
    let mut all = world.sent.clone();
    all.sort_unstable();
    assert_eq!(all, (1001..=1025).collect::<Vec<_>>());
}
