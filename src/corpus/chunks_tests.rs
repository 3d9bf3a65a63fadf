use super::*;

fn chunks(tokens: usize, ctx: usize) -> Chunks {
    Chunks::from_tokens((100..100 + tokens as i32).collect(), ctx, Some(1)).unwrap()
}

#[test]
fn chunks_begin_with_bos_and_the_tail_is_dropped() {
    let c = chunks(11, 4);
    assert_eq!(c.len(), 2);
    assert_eq!(c.get(1), [1, 105, 106, 107]);
    assert!(Chunks::from_tokens(vec![0; 3], 4, None).unwrap_err().to_string().contains("3 tokens"));
}

#[test]
fn the_first_chunks_are_those_of_llama_imatrix() {
    let plan = chunks(40, 4).plan(4, Selection::First);
    assert_eq!(plan, ChunkPlan { summed: vec![0, 1, 2, 3], held_out: vec![7] });
    let all = chunks(40, 4).plan(99, Selection::First);
    assert_eq!(all, ChunkPlan { summed: (0..10).collect(), held_out: vec![] });
}

#[test]
fn a_seed_names_its_chunks_for_ever() {
    let plan = chunks(400, 4).plan(5, Selection::Seeded(42));
    assert_eq!(plan, chunks(400, 4).plan(5, Selection::Seeded(42)));
    assert_ne!(plan, chunks(400, 4).plan(5, Selection::Seeded(43)));
    assert!(plan.summed.is_sorted() && !plan.summed.contains(&plan.held_out[0]));
    let all = chunks(40, 4).plan(10, Selection::Seeded(42));
    assert_eq!(all, ChunkPlan { summed: (0..10).collect(), held_out: vec![] });
}

/// A tokeniser for tests: a token a character, 1 in front where a text begins, 2 for a parsed `#`.
#[expect(clippy::unnecessary_wraps, reason = "tokenisers can fail")]
fn characters(text: &str, begin: bool, special: bool) -> Result<Vec<i32>> {
    let token = |c: char| if special && c == '#' { 2 } else { c as i32 };
    Ok(begin.then_some(1).into_iter().chain(text.chars().map(token)).collect())
}

/// Texts, and whether they may spell control tokens.
type Pieces<'a> = &'a [(&'a str, bool)];

/// A corpus with one source for each list of pieces: text, and whether it is special.
fn corpus(sources: &[(Option<f64>, Cut, Pieces)]) -> Corpus {
    let mut corpus = Corpus::default();
    for (i, (weight, cut, pieces)) in sources.iter().enumerate() {
        corpus.begin(Part { name: format!("s{i}"), weight: *weight, cut: *cut, ..Part::default() });
        for (text, special) in *pieces {
            corpus.add(text, *special, false).unwrap();
        }
    }
    corpus
}

fn built(corpus: &Corpus, ctx: usize) -> Chunks {
    Chunks::build(corpus, ctx, Some(1), &characters).unwrap()
}

fn letters(first: char, n: usize) -> String {
    std::iter::repeat_n(first, n).collect()
}

#[test]
fn without_weights_all_sources_are_one_text() {
    let all = corpus(&[(None, Cut::Stream, &[("ab", false), ("c#", false)]), (None, Cut::Stream, &[("d", false)])]);
    let chunks = built(&all, 4);
    assert_eq!(chunks.tokens(), characters("ab\n\nc#\n\nd", true, false).unwrap());
    assert_eq!(chunks.by_source(&chunks.plan(9, Selection::First)), None);
}

#[test]
fn control_tokens_are_parsed_only_where_they_may_be_and_no_character_is_lost() {
    let all = corpus(&[(None, Cut::Stream, &[("a#", false), ("#b", true), ("c#", false)])]);
    let expected = ['\u{1}', 'a', '#', '\n', '\n', '\u{2}', 'b', '\n', '\n', 'c', '#'].map(|c| c as i32);
    assert_eq!(built(&all, 4).tokens(), expected);
}

#[test]
fn a_template_that_writes_bos_itself_does_not_double_it() {
    let doubled = |text: &str, begin: bool, _: bool| {
        let own = text.chars().map(|c| if c == '^' { 1 } else { c as i32 });
        Ok(begin.then_some(1).into_iter().chain(own).collect())
    };
    let all = corpus(&[(None, Cut::Stream, &[("^ab", true)])]);
    assert_eq!(Chunks::build(&all, 2, Some(1), &doubled).unwrap().tokens(), [1, 97, 98]);
}

#[test]
fn weights_are_shares_of_the_chunks() {
    let (a, b) = (letters('a', 4000), letters('b', 9000));
    let all = corpus(&[(Some(0.3), Cut::Stream, &[(&a, false)]), (Some(0.7), Cut::Stream, &[(&b, false)])]);
    let chunks = built(&all, 4);
    for samples in [1, 7, 10, 100, 128, 1000] {
        let plan = chunks.plan(samples, Selection::Seeded(7));
        assert_eq!(plan.summed.len(), samples);
        let of_a = plan.summed.iter().filter(|&&chunk| chunks.get(chunk)[1] == 'a' as i32).count();
        assert!((of_a as f64 - 0.3 * samples as f64).abs() <= 0.5, "{of_a} of {samples}");
        assert!(plan.held_out.iter().all(|chunk| !plan.summed.contains(chunk)));
        assert_eq!(plan.held_out.len(), samples.div_ceil(32));
        let counts = chunks.by_source(&plan).unwrap();
        assert_eq!((counts[0].1, counts[1].1), (of_a, samples - of_a));
    }
    assert_eq!(chunks.shortage(1000), None);
    assert_eq!(chunks.plan(9, Selection::Seeded(7)), built(&all, 4).plan(9, Selection::Seeded(7)));
    assert_ne!(chunks.plan(9, Selection::Seeded(7)), chunks.plan(9, Selection::Seeded(8)));
}

#[test]
fn a_scarce_source_makes_the_run_shorter_and_is_named() {
    let (a, b) = (letters('a', 40), letters('b', 4000));
    let all = corpus(&[(Some(1.0), Cut::Stream, &[(&a, false)]), (Some(1.0), Cut::Stream, &[(&b, false)])]);
    let chunks = built(&all, 4);
    let plan = chunks.plan(100, Selection::First);
    assert_eq!(plan.summed, (0..20).collect::<Vec<_>>());
    assert_eq!(chunks.by_source(&plan).unwrap().iter().map(|(_, n)| *n).collect::<Vec<_>>(), [10, 10]);
    assert_eq!(chunks.shortage(100), Some(("s0".into(), 10, 20)));
}

#[test]
fn a_source_with_a_weight_and_no_chunk_is_refused() {
    let all = corpus(&[(Some(1.0), Cut::Stream, &[("ab", false)]), (Some(1.0), Cut::Stream, &[("abcdef", false)])]);
    let error = Chunks::build(&all, 4, None, &characters).unwrap_err();
    assert_eq!(error.to_string(), "s0: 3 tokens, too few for one chunk of 4");
}

#[test]
fn windows_lie_anywhere_in_texts_that_are_long_enough() {
    let texts: Vec<String> = (0..300).map(|i| format!("{}{i:05}", if i % 2 == 0 { "" } else { "xyz" })).collect();
    let pieces: Vec<(&str, bool)> = texts.iter().map(|text| (text.as_str(), false)).collect();
    let windows = |wanted, seed| built(&corpus(&[(None, Cut::Windows { wanted, seed }, &pieces)]), 6);
    let found = windows(100, 1);
    assert_eq!(found.len(), 100); // only those with eight characters have six
    let mut offsets: Vec<usize> = (0..100)
        .map(|i| {
            let window: String = found.get(i)[1..].iter().map(|t| char::from_u32(*t as u32).unwrap()).collect();
            (0..3).find(|at| texts.iter().any(|text| text.len() == 8 && text[at + 1..].starts_with(&window))).unwrap()
        })
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets, [0, 1, 2]);
    assert_eq!(found.tokens(), windows(100, 1).tokens());
    assert_ne!(found.tokens(), windows(100, 2).tokens());
    assert_eq!(windows(1000, 1).len(), 150);
}

#[test]
fn apportioning_adds_up_and_stays_within_one() {
    assert_eq!(apportion(10, &[0.3, 0.7]), [3, 7]);
    assert_eq!(apportion(1, &[0.5, 0.5]), [1, 0]);
    assert_eq!(apportion(7, &[1.0, 1.0, 1.0]), [3, 2, 2]);
    assert_eq!(fitting(10, &[1, 100], &[0.5, 0.5]), 2);
    assert_eq!(fitting(10, &[0, 100], &[0.5, 0.5]), 1);
}
