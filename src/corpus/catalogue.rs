//! The data sets that have names: where each part of them lies, how its bytes are known, how it is read. Data only.

use super::rules::Rule;

/// What a text is for; decides which part of a data set is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Measuring activations: the training part.
    Calibration,
    /// Measuring a model: the test or validation part.
    Evaluation,
}

/// A data set.
#[derive(Debug, Clone, Copy)]
pub struct Dataset {
    /// Its name.
    pub name: &'static str,
    /// Other names for it.
    pub aliases: &'static [&'static str],
    /// One line about it.
    pub about: &'static str,
    /// Its licence, as its publisher states it.
    pub licence: &'static str,
    /// What calibration takes.
    pub calibration: Part,
    /// What evaluation takes.
    pub evaluation: Part,
}

/// A part (split) of a data set.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Its name: train, validation, test.
    pub split: &'static str,
    /// The file under the data folder.
    pub file: &'static str,
    /// Bytes and hash of that file.
    pub known: Known,
    /// Where the file comes from.
    pub origin: Origin,
    /// How the file is read.
    pub format: Format,
    /// How it is sampled if the user does not say.
    pub rule: Rule,
}

/// What is known about the bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Length and SHA-256.
    Sha256(u64, &'static str),
    /// MD5 alone.
    Md5(&'static str),
    /// Nothing.
    Nothing,
}

/// Where a file comes from.
#[derive(Debug, Clone, Copy)]
pub enum Origin {
    /// The file itself, at the first of these addresses that has it.
    File {
        /// The addresses.
        urls: &'static [&'static str],
        /// Bytes at most.
        limit: u64,
    },
    /// A zip archive with the file.
    Zip {
        /// The archive.
        archive: &'static Archive,
        /// The name of the file in it.
        member: &'static str,
    },
    /// The head of a gzip file that is too large to fetch: lines are taken while it arrives.
    Stream {
        /// The addresses.
        urls: &'static [&'static str],
    },
}

impl Origin {
    /// The addresses to try, in order.
    pub fn urls(&self) -> &'static [&'static str] {
        match self {
            Origin::File { urls, .. } | Origin::Stream { urls } => urls,
            Origin::Zip { archive, .. } => archive.urls,
        }
    }
}

/// A zip archive.
#[derive(Debug)]
pub struct Archive {
    /// Its name under the data folder.
    pub file: &'static str,
    /// Its bytes.
    pub known: Known,
    /// The addresses.
    pub urls: &'static [&'static str],
}

/// How a file of the catalogue is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One text.
    Text,
    /// A line each of JSON objects with a string under "text", gzip or not.
    JsonLines,
    /// CSV without a line of names; a sample is these columns (counted from 1) with a blank between them.
    Csv(&'static [usize]),
}

static WIKITEXT_2: Archive = Archive {
    file: "wikitext-2-raw-v1.zip",
    known: Known::Sha256(4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    urls: &[
        "https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/wikitext-2-raw-v1.zip",
        "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
    ],
};

const fn wikitext(split: &'static str, file: &'static str, bytes: u64, sha256: &'static str) -> Part {
    Part {
        split,
        file,
        known: Known::Sha256(bytes, sha256),
        origin: Origin::Zip { archive: &WIKITEXT_2, member: file },
        format: Format::Text,
        rule: Rule::Raw,
    }
}

const fn c4(split: &'static str, file: &'static str, urls: &'static [&'static str], rule: Rule) -> Part {
    Part { split, file, known: Known::Nothing, origin: Origin::Stream { urls }, format: Format::JsonLines, rule }
}

const fn ag_news(split: &'static str, file: &'static str, urls: &'static [&'static str], md5: &'static str) -> Part {
    Part {
        split,
        file,
        known: Known::Md5(md5),
        origin: Origin::File { urls, limit: 64 << 20 },
        format: Format::Csv(&[2, 3]),
        rule: Rule::Texts,
    }
}

/// Bartowski's text is one file, for both purposes.
const V3: Part = Part {
    split: "all",
    file: "calibration_datav3.txt",
    known: Known::Sha256(279_515, "200e109bcd2b599fabcceaada7f52bbd1e7c8f9ae030b8dc59c011de039a8026"),
    origin: Origin::File {
        urls: &[
            "https://gist.githubusercontent.com/bartowski1182/eb213dccb3571f863da82e99418f81e8/raw/2c64bb691316d32915b188e495754ef34931ae71/calibration_datav3.txt",
            "https://gist.githubusercontent.com/bartowski1182/eb213dccb3571f863da82e99418f81e8/raw/calibration_datav3.txt",
        ],
        limit: 1 << 20,
    },
    format: Format::Text,
    rule: Rule::Raw,
};

/// All data sets.
pub static CATALOGUE: &[Dataset] = &[
    Dataset {
        name: "wikitext2",
        aliases: &["wikitext", "wikitext-2"],
        about: "WikiText-2 raw: Wikipedia articles, the field's usual text",
        licence: "CC BY-SA 3.0",
        calibration: wikitext(
            "train",
            "wikitext-2-raw/wiki.train.raw",
            10_940_747,
            "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
        ),
        evaluation: wikitext(
            "test",
            "wikitext-2-raw/wiki.test.raw",
            1_290_590,
            "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        ),
    },
    Dataset {
        name: "c4",
        aliases: &[],
        about: "C4 (en), first shard: web pages, taken from the head of the stream",
        licence: "ODC-BY 1.0",
        calibration: c4(
            "train",
            "c4/en/c4-train.00000-of-01024.json.gz",
            &["https://huggingface.co/datasets/allenai/c4/resolve/main/en/c4-train.00000-of-01024.json.gz"],
            Rule::Windows,
        ),
        evaluation: c4(
            "validation",
            "c4/en/c4-validation.00000-of-00008.json.gz",
            &["https://huggingface.co/datasets/allenai/c4/resolve/main/en/c4-validation.00000-of-00008.json.gz"],
            Rule::Texts,
        ),
    },
    Dataset {
        name: "ag-news",
        aliases: &["ag_news", "agnews"],
        about: "AG News: titles and first sentences of news articles",
        licence: "non-commercial use, no formal licence",
        calibration: ag_news(
            "train",
            "ag_news_csv/train.csv",
            &["https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/train.csv"],
            "b1a00f826fdfbd249f79597b59e1dc12",
        ),
        evaluation: ag_news(
            "test",
            "ag_news_csv/test.csv",
            &["https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv"],
            "d52ea96a97a2d943681189a97654912d",
        ),
    },
    Dataset {
        name: "v3",
        aliases: &["bartowski-v3", "calibration_datav3"],
        about: "Bartowski's calibration text v3: prose, code, chat and many languages",
        licence: "none stated",
        calibration: V3,
        evaluation: V3,
    },
];

/// Finds a data set by its name or an alias, in any case of letters.
pub fn find(name: &str) -> Option<&'static Dataset> {
    let same = |known: &str| known.eq_ignore_ascii_case(name);
    CATALOGUE.iter().find(|set| same(set.name) || set.aliases.iter().any(|alias| same(alias)))
}

impl Dataset {
    /// The part for a purpose.
    pub fn part(&self, purpose: Purpose) -> &Part {
        match purpose {
            Purpose::Calibration => &self.calibration,
            Purpose::Evaluation => &self.evaluation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_lead_to_one_set_each() {
        let mut names: Vec<&str> =
            CATALOGUE.iter().flat_map(|set| set.aliases.iter().copied().chain([set.name])).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(find("WikiText").unwrap().name, "wikitext2");
        assert!(find("c5").is_none());
    }

    #[test]
    fn hashes_have_their_length_and_files_stay_in_the_folder() {
        for part in CATALOGUE.iter().flat_map(|set| [&set.calibration, &set.evaluation]) {
            match part.known {
                Known::Sha256(_, hash) => assert_eq!(hash.len(), 64),
                Known::Md5(hash) => assert_eq!(hash.len(), 32),
                Known::Nothing => {}
            }
            assert!(!part.file.starts_with('/') && !part.file.contains(".."));
            assert!(part.origin.urls().iter().all(|url| url.starts_with("https://")));
        }
    }
}
