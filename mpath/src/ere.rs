//! POSIX extended regular expressions, as multipath.conf writes them: unanchored and case-sensitive.
//!
//! The dialect is regcomp(3)'s REG_EXTENDED as glibc reads it, with `\w \W \s \S`; a repetition with nothing
//! before it is passed over, so that `"*"` matches everything, as many a site's blacklist expects. Collating
//! elements and word boundaries are refused. Matching takes time in proportion to text times pattern.

use std::fmt;
use std::str::Chars;

/// RE_DUP_MAX of `{n,m}`.
const REPEAT_MAX: u32 = 255;
/// Instructions of one pattern; nested repetitions multiply.
const PROGRAM_MAX: usize = 1 << 14;
/// Groups within groups.
const DEPTH_MAX: u32 = 16;
/// Repetitions of repetitions, as `a**`.
const STACKED_MAX: u32 = 4;

/// A compiled pattern.
#[derive(Clone)]
pub struct Ere {
    text: String,
    program: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    One(Class),
    /// Both ways.
    Fork(usize, usize),
    Start,
    End,
    Match,
}

/// A set of characters.
#[derive(Clone, Debug, Default)]
struct Class {
    ranges: Vec<(char, char)>,
    kinds: Vec<fn(char) -> bool>,
    is_negated: bool,
}

impl Class {
    fn any() -> Class {
        Class {
            is_negated: true,
            ..Class::default()
        }
    }

    fn of(c: char) -> Class {
        Class {
            ranges: vec![(c, c)],
            ..Class::default()
        }
    }

    fn has(&self, c: char) -> bool {
        let is_in = self.ranges.iter().any(|(a, b)| (*a..=*b).contains(&c))
            || self.kinds.iter().any(|kind| kind(c));
        is_in != self.is_negated
    }
}

enum Node {
    One(Class),
    Start,
    End,
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Ere {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it, as the end of the sentence "PATTERN: …".
    pub fn new(text: &str) -> Result<Ere, String> {
        let mut parser = Parser {
            rest: text.chars(),
            depth: 0,
        };
        let node = parser.choice()?;
        let mut program = Vec::new();
        emit(&node, &mut program)?;
        program.push(Step::Match);
        Ok(Ere {
            text: text.to_owned(),
            program,
        })
    }

    /// Whether any part of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let mut now = Threads::new(self.program.len());
        let mut next = Threads::new(self.program.len());
        let mut rest = text.chars();
        let mut is_start = true;
        loop {
            let here = rest.clone().next();
            if self.follow(0, is_start, here.is_none(), &mut now) {
                return true;
            }
            let Some(c) = rest.next() else { return false };
            is_start = false;
            let is_end = rest.clone().next().is_none();
            next.clear();
            for &at in &now.list {
                if let Step::One(class) = &self.program[at] {
                    if class.has(c) && self.follow(at + 1, false, is_end, &mut next) {
                        return true;
                    }
                }
            }
            std::mem::swap(&mut now, &mut next);
        }
    }

    /// Adds what can be reached from `at` without a character; whether that is the end of the program.
    fn follow(&self, at: usize, is_start: bool, is_end: bool, threads: &mut Threads) -> bool {
        let mut todo = vec![at];
        while let Some(at) = todo.pop() {
            if std::mem::replace(&mut threads.seen[at], true) {
                continue;
            }
            threads.list.push(at);
            match &self.program[at] {
                Step::Match => return true,
                Step::Fork(a, b) => todo.extend([*a, *b]),
                Step::Start if is_start => todo.push(at + 1),
                Step::End if is_end => todo.push(at + 1),
                Step::Start | Step::End | Step::One(_) => {}
            }
        }
        false
    }
}

/// The steps at which a match stands.
struct Threads {
    list: Vec<usize>,
    seen: Vec<bool>,
}

impl Threads {
    fn new(steps: usize) -> Threads {
        Threads {
            list: Vec::new(),
            seen: vec![false; steps],
        }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.seen.fill(false);
    }
}

impl fmt::Display for Ere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Ere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ere({:?})", self.text)
    }
}

impl PartialEq for Ere {
    fn eq(&self, other: &Ere) -> bool {
        self.text == other.text
    }
}

impl Eq for Ere {}

struct Parser<'a> {
    rest: Chars<'a>,
    depth: u32,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn take(&mut self, c: char) -> bool {
        let is_next = self.peek() == Some(c);
        if is_next {
            self.rest.next();
        }
        is_next
    }

    fn choice(&mut self) -> Result<Node, String> {
        let mut branches = vec![self.sequence()?];
        while self.take('|') {
            branches.push(self.sequence()?);
        }
        Ok(match branches.pop() {
            Some(only) if branches.is_empty() => only,
            last => {
                branches.extend(last);
                Node::Choice(branches)
            }
        })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut stacked = 0;
        while let Some(c) = self.peek() {
            // Outside a group a closing parenthesis is itself.
            if c == '|' || (c == ')' && self.depth > 0) {
                break;
            }
            self.rest.next();
            stacked = if "*+?{".contains(c) { stacked + 1 } else { 0 };
            if stacked > STACKED_MAX && !nodes.is_empty() {
                return Err(format!("more than {STACKED_MAX} repetitions of one thing"));
            }
            match c {
                '*' | '+' | '?' => {
                    let (least, most) = match c {
                        '*' => (0, None),
                        '+' => (1, None),
                        _ => (0, Some(1)),
                    };
                    if let Some(last) = nodes.pop() {
                        nodes.push(Node::Repeat(Box::new(last), least, most));
                    }
                }
                '{' => {
                    let (least, most) = self.interval()?;
                    let last = nodes.pop().ok_or("nothing stands before {")?;
                    nodes.push(Node::Repeat(Box::new(last), least, most));
                }
                '(' => {
                    self.depth += 1;
                    if self.depth > DEPTH_MAX {
                        return Err(format!("groups are nested more than {DEPTH_MAX} deep"));
                    }
                    let group = self.choice()?;
                    if !self.take(')') {
                        return Err("a ( is not closed".to_owned());
                    }
                    self.depth -= 1;
                    nodes.push(group);
                }
                '^' => nodes.push(Node::Start),
                '$' => nodes.push(Node::End),
                '.' => nodes.push(Node::One(Class::any())),
                '[' => nodes.push(Node::One(self.bracket()?)),
                '\\' => nodes.push(Node::One(self.escape()?)),
                c => nodes.push(Node::One(Class::of(c))),
            }
        }
        Ok(Node::Sequence(nodes))
    }

    fn escape(&mut self) -> Result<Class, String> {
        let kind = |kind: fn(char) -> bool, is_negated: bool| Class {
            kinds: vec![kind],
            is_negated,
            ..Class::default()
        };
        let is_word: fn(char) -> bool = |c| c.is_alphanumeric() || c == '_';
        Ok(match self.rest.next() {
            None => return Err("a \\ stands at the end".to_owned()),
            Some(c @ ('w' | 'W')) => kind(is_word, c == 'W'),
            Some(c @ ('s' | 'S')) => kind(char::is_whitespace, c == 'S'),
            Some(c) if c.is_ascii_alphanumeric() || matches!(c, '<' | '>' | '`' | '\'') => {
                return Err(format!("\\{c} is not understood"));
            }
            Some(c) => Class::of(c),
        })
    }

    fn interval(&mut self) -> Result<(u32, Option<u32>), String> {
        let wrong = || format!("expected {{n}}, {{n,}} or {{n,m}} with numbers up to {REPEAT_MAX}");
        let least = self.number()?;
        let (least, most) = match (least, self.take(',')) {
            (Some(n), false) => (n, Some(n)),
            (least, true) => (least.unwrap_or(0), self.number()?),
            (None, false) => return Err(wrong()),
        };
        if !self.take('}') || most.is_some_and(|m| m < least) {
            return Err(wrong());
        }
        Ok((least, most))
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        let mut number = None;
        while let Some(digit) = self.peek().and_then(|c| c.to_digit(10)) {
            self.rest.next();
            let more = number.unwrap_or(0) * 10 + digit;
            if more > REPEAT_MAX {
                return Err(format!("repeats more than {REPEAT_MAX} times"));
            }
            number = Some(more);
        }
        Ok(number)
    }

    fn bracket(&mut self) -> Result<Class, String> {
        let mut class = Class {
            is_negated: self.take('^'),
            ..Class::default()
        };
        let mut is_first = true;
        loop {
            let c = self.rest.next().ok_or("a [ is not closed")?;
            if c == ']' && !is_first {
                return Ok(class);
            }
            is_first = false;
            if c == '[' && self.take(':') {
                class.kinds.push(self.named_class()?);
                continue;
            }
            if c == '[' && matches!(self.peek(), Some('.' | '=')) {
                return Err("collating elements are not understood".to_owned());
            }
            // A hyphen before the closing bracket is itself.
            let mut ahead = self.rest.clone();
            let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']');
            if !is_range {
                class.ranges.push((c, c));
                continue;
            }
            self.rest.next();
            let end = self.rest.next().ok_or("a [ is not closed")?;
            if end < c {
                return Err(format!("the range {c}-{end} runs backwards"));
            }
            class.ranges.push((c, end));
        }
    }

    fn named_class(&mut self) -> Result<fn(char) -> bool, String> {
        let mut name = String::new();
        while let Some(c) = self.rest.next() {
            if c == ':' && self.take(']') {
                return Ok(match name.as_str() {
                    "alpha" => char::is_alphabetic,
                    "digit" => |c| c.is_ascii_digit(),
                    "alnum" => char::is_alphanumeric,
                    "upper" => char::is_uppercase,
                    "lower" => char::is_lowercase,
                    "space" => char::is_whitespace,
                    "blank" => |c| matches!(c, ' ' | '\t'),
                    "punct" => |c| c.is_ascii_punctuation(),
                    "xdigit" => |c| c.is_ascii_hexdigit(),
                    "cntrl" => char::is_control,
                    "graph" => |c| !c.is_control() && !c.is_whitespace(),
                    "print" => |c| !c.is_control(),
                    _ => return Err(format!("there is no class [:{name}:]")),
                });
            }
            name.push(c);
        }
        Err("a [ is not closed".to_owned())
    }
}

fn emit(node: &Node, program: &mut Vec<Step>) -> Result<(), String> {
    if program.len() > PROGRAM_MAX {
        return Err("the pattern is too large".to_owned());
    }
    match node {
        Node::One(class) => program.push(Step::One(class.clone())),
        Node::Start => program.push(Step::Start),
        Node::End => program.push(Step::End),
        Node::Sequence(nodes) => {
            for node in nodes {
                emit(node, program)?;
            }
        }
        Node::Choice(branches) => {
            let mut ends = Vec::new();
            for (i, branch) in branches.iter().enumerate() {
                let is_last = i + 1 == branches.len();
                let fork = program.len();
                if !is_last {
                    program.push(Step::Match); // set below
                }
                emit(branch, program)?;
                if !is_last {
                    ends.push(program.len());
                    program.push(Step::Match); // set below
                    program[fork] = Step::Fork(fork + 1, program.len());
                }
            }
            let end = program.len();
            for at in ends {
                program[at] = Step::Fork(end, end);
            }
        }
        Node::Repeat(node, least, most) => {
            let mut last = program.len();
            for _ in 0..*least {
                last = program.len();
                emit(node, program)?;
                // Nothing repeated is nothing, however often.
                if program.len() == last {
                    break;
                }
            }
            match most {
                None if *least > 0 => program.push(Step::Fork(last, program.len() + 1)),
                None => {
                    let fork = program.len();
                    program.push(Step::Match); // set below
                    emit(node, program)?;
                    program.push(Step::Fork(fork, fork));
                    program[fork] = Step::Fork(fork + 1, program.len());
                }
                Some(most) => {
                    let mut forks = Vec::new();
                    for _ in *least..*most {
                        forks.push(program.len());
                        program.push(Step::Match); // set below
                        emit(node, program)?;
                    }
                    let end = program.len();
                    for at in forks {
                        program[at] = Step::Fork(at + 1, end);
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches() {
        for (pattern, yes, no) in [
            ("IET", &["IET", "xIETx"][..], &["iet", ""][..]),
            ("^(IET|LIO-ORG)$", &["IET", "LIO-ORG"], &["IETS", "LIO"]),
            (
                "^3600[0-9a-f]{4}$",
                &["3600beaf"],
                &["3600beag", "3600beaff"],
            ),
            (
                "VIRTUAL.*DISK",
                &["VIRTUAL-DISK", "A VIRTUALDISK"],
                &["VIRTUAL"],
            ),
            ("*", &["", "anything"], &[]),
            (".*", &["", "anything"], &[]),
            ("^$", &[""], &["x"]),
            ("a+b?c{2,}", &["aacc", "abccc"], &["abc", "bcc"]),
            ("^[^]a-]$", &["b", "^"], &["]", "a", "-"]),
            ("^[[:digit:]_-]+$", &["1-_2"], &["1a"]),
            (r"^\(sd\.\w\)$", &["(sd.x)"], &["(sdxx)", "(sd.-)"]),
            ("(^|x)a)", &["a)", "xa)"], &["ba)", "a"]),
            ("a|", &["", "b"], &[]),
            ("(a*)*b", &["aaab", "b"], &["aaa"]),
        ] {
            let ere = Ere::new(pattern).unwrap();
            for text in yes {
                assert!(ere.matches(text), "{pattern} on {text:?}");
            }
            for text in no {
                assert!(!ere.matches(text), "{pattern} on {text:?}");
            }
        }
    }

    #[test]
    fn what_is_refused() {
        for (pattern, why) in [
            ("(a", "a ( is not closed"),
            ("[a", "a [ is not closed"),
            (
                "a{3,2}",
                "expected {n}, {n,} or {n,m} with numbers up to 255",
            ),
            ("a{256}", "repeats more than 255 times"),
            ("{2}", "nothing stands before {"),
            ("[z-a]", "the range z-a runs backwards"),
            (r"\bword", r"\b is not understood"),
            ("x\\", "a \\ stands at the end"),
            ("((a{255}){255}){255}", "the pattern is too large"),
        ] {
            assert_eq!(Ere::new(pattern).unwrap_err(), why, "{pattern}");
        }
        assert!(Ere::new(&"(".repeat(100)).unwrap_err().contains("nested"));
        assert!(Ere::new(&"*".repeat(1000)).is_ok());
        assert!(Ere::new("a+*?{2}").is_ok());
        let many = format!("a{}", "+".repeat(1000));
        assert!(Ere::new(&many).unwrap_err().contains("repetitions"));
        assert!(Ere::new("((((()){255}){255}){255}){255}").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn never_panics_nor_hangs(pattern in "[ab(){}\\[\\]|*+?^$.,:0-9\\\\-]{0,24}", text in "[ab]{0,40}") {
            if let Ok(ere) = Ere::new(&pattern) {
                let _ = ere.matches(&text);
            }
        }

        #[test]
        fn literals_are_found(before in "[a-z]{0,5}", word in "[a-z]{1,5}", after in "[a-z]{0,5}") {
            let ere = Ere::new(&word).unwrap();
            let whole = format!("{before}{word}{after}");
            proptest::prop_assert!(ere.matches(&whole));
            let anchored = Ere::new(&format!("^{word}$")).unwrap();
            proptest::prop_assert_eq!(anchored.matches(&whole), whole == word);
        }
    }
}
