//! From text to a tree: the lexer and parser of the Common Expression Language, macros included.
//!
//! Macros (`has`, `all`, `exists`, `map`, `filter`, ...) stay what they are: the checker and the interpreter know them. The
//! parser bounds length and nesting, so no text can exhaust the stack.

use super::{Libraries, limits};

/// A node and where its operator or first character stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub at: usize,
    pub kind: Kind,
    /// Its number in the whole expression, by which a check tells of it.
    pub id: usize,
    /// Levels below, itself included. Bounded, so that whoever walks the tree may recurse.
    depth: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Literal(Literal),
    Ident(String),
    /// `a.b`, `a.?b`, and `has(a.b)` when `test`.
    Select {
        operand: Box<Expr>,
        field: String,
        test: bool,
        optional: bool,
    },
    /// Functions and operators; operators under cel's names (`_+_`, `_[_]`).
    Call {
        target: Option<Box<Expr>>,
        function: String,
        args: Vec<Expr>,
    },
    /// Items, and whether each is optional.
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// `Type{field: value}`.
    Struct(String, Vec<(String, Expr, bool)>),
    Macro(Box<Macro>),
}

/// A loop over `range`, or a binding of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Macro {
    pub name: MacroName,
    pub range: Expr,
    pub variable: String,
    /// The second variable of the forms that have index or key and value.
    pub second: Option<String>,
    pub filter: Option<Expr>,
    pub body: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacroName {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
    SortBy,
    Bind,
    OptMap,
    OptFlatMap,
}

/// What is wrong with a text, and where (in characters).
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub at: usize,
    pub message: String,
}

impl Problem {
    /// As cel-go shows it: position, message, the line, and an arrow.
    pub fn shown(&self, source: &str) -> String {
        if source.is_empty() {
            return format!("ERROR: <input>:1:0: {}", self.message);
        }
        let before: String = source.chars().take(self.at).collect();
        let line = before.matches('\n').count();
        let column = before.chars().rev().take_while(|c| *c != '\n').count();
        let text = source.split('\n').nth(line).unwrap_or_default();
        format!("ERROR: <input>:{}:{}: {}\n | {text}\n | {}^", line + 1, column + 1, self.message, ".".repeat(column))
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Ident(String),
    /// Between backquotes: any field name.
    Quoted(String),
    Literal(Literal),
    Op(&'static str),
    End,
}

const OPERATORS: &[&str] =
    &["==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "[", "]", "(", ")", "{", "}"];
const OPERANDS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Words that mean something in an expression.
pub const KEYWORDS: &[&str] = &["true", "false", "null", "in"];
/// Words that may not be names: the language keeps them for itself.
pub const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Characters of one expression that nobody knows and that are named; of more, the rest is left out.
const UNKNOWN_MAX: usize = 20;

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    /// What was left out because it begins no token.
    unknown: Vec<Problem>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }
    fn problem<T>(&self, at: usize, message: impl Into<String>) -> Result<T, Problem> {
        Err(Problem { at, message: format!("Syntax error: {}", message.into()) })
    }

    /// Goes on behind characters that begin no token.
    fn leave_out(&mut self, length: usize) {
        let start = self.at;
        self.at = self.chars.len().min(start + length);
        if self.unknown.len() < UNKNOWN_MAX {
            let text: String = self.chars[start..self.at].iter().collect();
            self.unknown.push(Problem { at: start, message: format!("Syntax error: token recognition error at: '{text}'") });
        }
    }

    fn all(&mut self) -> Result<Vec<(Token, usize)>, Problem> {
        let mut tokens = vec![];
        loop {
            while let Some(c) = self.peek(0) {
                if c.is_whitespace() {
                    self.at += 1;
                } else if c == '/' && self.peek(1) == Some('/') {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                } else {
                    break;
                }
            }
            let start = self.at;
            let Some(c) = self.peek(0) else {
                tokens.push((Token::End, start));
                return Ok(tokens);
            };
            let token = if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
                self.number()?
            } else if let Some(prefix) = self.string_prefix() {
                self.string(prefix)?
            } else if c == '`' {
                self.at += 1;
                let name: String = self.chars[self.at..].iter().take_while(|c| **c != '`').collect();
                self.at += name.chars().count();
                if self.peek(0) != Some('`') {
                    return self.problem(start, "token recognition error at: '`'");
                }
                self.at += 1;
                Token::Quoted(name)
            } else if c.is_ascii_alphabetic() || c == '_' {
                let word: String = self.chars[self.at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
                self.at += word.len();
                match word.as_str() {
                    "true" => Token::Literal(Literal::Bool(true)),
                    "false" => Token::Literal(Literal::Bool(false)),
                    "null" => Token::Literal(Literal::Null),
                    "in" => Token::Op("in"),
                    _ => Token::Ident(word),
                }
            } else {
                let found = OPERATORS.iter().find(|op| op.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c)));
                let Some(op) = found else {
                    // Half an operator goes with what stands in the place of the other half.
                    let length = if matches!(c, '=' | '|' | '&') { 2 } else { 1 };
                    self.leave_out(length);
                    continue;
                };
                self.at += op.len();
                Token::Op(op)
            };
            tokens.push((token, start));
        }
    }

    fn number(&mut self) -> Result<Token, Problem> {
        let start = self.at;
        if self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X')) {
            self.at += 2;
            let digits: String = self.chars[self.at..].iter().take_while(|c| c.is_ascii_hexdigit()).collect();
            self.at += digits.len();
            let parsed = u64::from_str_radix(&digits, 16);
            if matches!(self.peek(0), Some('u' | 'U')) {
                self.at += 1;
                return parsed.map(|n| Token::Literal(Literal::Uint(n))).or_else(|_| self.problem(start, "invalid uint literal"));
            }
            return match parsed.ok().and_then(|n| i64::try_from(n).ok()) {
                Some(n) => Ok(Token::Literal(Literal::Int(n))),
                None => self.problem(start, "invalid int literal"),
            };
        }
        let mut text = String::new();
        let mut double = false;
        while let Some(c) = self.peek(0) {
            let exponent = matches!(c, 'e' | 'E')
                && (self.peek(1).is_some_and(|c| c.is_ascii_digit())
                    || (matches!(self.peek(1), Some('+' | '-')) && self.peek(2).is_some_and(|c| c.is_ascii_digit())));
            if c.is_ascii_digit() {
                text.push(c);
            } else if c == '.' && !double && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                double = true;
                text.push(c);
            } else if exponent {
                double = true;
                text.push(c);
                text.extend(self.peek(1));
                self.at += 1;
            } else {
                break;
            }
            self.at += 1;
        }
        if double {
            return text.parse().map(|n| Token::Literal(Literal::Double(n))).or_else(|_| self.problem(start, "invalid double literal"));
        }
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return text.parse().map(|n| Token::Literal(Literal::Uint(n))).or_else(|_| self.problem(start, "invalid uint literal"));
        }
        match text.parse::<i64>() {
            Ok(n) => Ok(Token::Literal(Literal::Int(n))),
            // The smallest number is written as the negation of what does not fit.
            Err(_) if text == "9223372036854775808" => Ok(Token::Literal(Literal::Uint(1 << 63))),
            Err(_) => self.problem(start, "invalid int literal"),
        }
    }

    /// Prefix letters (`r`, `b`) if a string begins here.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes, mut length) = (false, false, 0);
        while length < 2 {
            match self.peek(length) {
                Some('r' | 'R') if !raw => raw = true,
                Some('b' | 'B') if !bytes => bytes = true,
                _ => break,
            }
            length += 1;
        }
        matches!(self.peek(length), Some('"' | '\'')).then_some((raw, bytes, length))
    }

    fn string(&mut self, (raw, bytes, prefix): (bool, bool, usize)) -> Result<Token, Problem> {
        let start = self.at;
        self.at += prefix;
        let quote = self.peek(0).unwrap_or('"');
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let (mut text, mut octets) = (String::new(), Vec::new());
        loop {
            let Some(c) = self.peek(0) else {
                return self.problem(start, format!("token recognition error at: '{}'", self.chars[start..].iter().collect::<String>()));
            };
            if c == quote && (!triple || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote))) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if c == '\n' && !triple {
                return self.problem(start, format!("token recognition error at: '{}'", self.chars[start..self.at].iter().collect::<String>()));
            }
            self.at += 1;
            if c != '\\' || raw {
                text.push(c);
                octets.extend(c.to_string().as_bytes());
                continue;
            }
            let Some(escape) = self.peek(0) else { continue };
            self.at += 1;
            let digits = |lexer: &Lexer<'_>, count: usize, radix: u32| -> Option<u32> {
                let digits: String = lexer.chars.get(lexer.at..lexer.at + count)?.iter().collect();
                u32::from_str_radix(&digits, radix).ok()
            };
            let (code, width, is_octet) = match escape {
                'n' => (Some(10), 0, false),
                't' => (Some(9), 0, false),
                'r' => (Some(13), 0, false),
                'a' => (Some(7), 0, false),
                'b' => (Some(8), 0, false),
                'f' => (Some(12), 0, false),
                'v' => (Some(11), 0, false),
                '\\' | '\'' | '"' | '`' | '?' => (Some(escape as u32), 0, false),
                'x' | 'X' => (digits(self, 2, 16), 2, true),
                'u' => (digits(self, 4, 16), 4, false),
                'U' => (digits(self, 8, 16), 8, false),
                '0'..='3' => {
                    self.at -= 1;
                    (digits(self, 3, 8), 3, true)
                }
                _ => (None, 0, false),
            };
            self.at += width;
            let Some(c) = code.and_then(char::from_u32) else { return self.problem(start, "invalid escape sequence") };
            text.push(c);
            if is_octet {
                octets.push(c as u32 as u8);
            } else {
                octets.extend(c.to_string().as_bytes());
            }
        }
        Ok(Token::Literal(if bytes { Literal::Bytes(octets) } else { Literal::String(text) }))
    }
}

/// Parses one expression as most may be written. Errors come in the order of their places.
pub fn parse(source: &str) -> Result<Expr, Vec<Problem>> {
    parse_with(source, Libraries::default())
}

/// The same with what an environment has beside the common.
pub fn parse_with(source: &str, libraries: Libraries) -> Result<Expr, Vec<Problem>> {
    if source.len() > limits::SOURCE_BYTES_MAX {
        let message = format!("expression code point size exceeds limit: size: {}, limit {}", source.len(), limits::SOURCE_BYTES_MAX);
        return Err(vec![Problem { at: 0, message }]);
    }
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, unknown: vec![] };
    let parsed = lexer.all().and_then(|tokens| whole(tokens, libraries));
    let mut problems = lexer.unknown;
    match parsed {
        Ok(mut expression) if problems.is_empty() => {
            number(&mut expression, &mut 0);
            return Ok(expression);
        }
        Ok(_) => {}
        Err(problem) => problems.push(problem),
    }
    problems.sort_by_key(|problem| problem.at);
    Err(problems)
}

/// The expression that all tokens make.
fn whole(tokens: Vec<(Token, usize)>, libraries: Libraries) -> Parsed {
    let mut parser = Parser { tokens, at: 0, depth: 0, libraries };
    let expression = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(expression),
        _ => parser.unexpected("<EOF>"),
    }
}

/// Gives every node its number.
fn number(expr: &mut Expr, next: &mut usize) {
    expr.id = *next;
    *next += 1;
    let mut below = |expr: &mut Expr| number(expr, next);
    match &mut expr.kind {
        Kind::Literal(_) | Kind::Ident(_) => {}
        Kind::Select { operand, .. } => below(operand),
        Kind::Call { target, args, .. } => target.iter_mut().map(|target| &mut **target).chain(args).for_each(below),
        Kind::List(items) => items.iter_mut().for_each(|(item, _)| below(item)),
        Kind::Map(entries) => entries.iter_mut().for_each(|(key, value, _)| [key, value].into_iter().for_each(&mut below)),
        Kind::Struct(_, fields) => fields.iter_mut().for_each(|(_, value, _)| below(value)),
        Kind::Macro(m) => {
            let Macro { range, filter, body, .. } = &mut **m;
            [range, body].into_iter().chain(filter).for_each(below);
        }
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    libraries: Libraries,
}

type Parsed = Result<Expr, Problem>;

fn call(at: usize, function: &str, args: Vec<Expr>) -> Parsed {
    node(at, Kind::Call { target: None, function: function.into(), args })
}

/// A node over others; refused when the tree becomes too deep.
fn node(at: usize, kind: Kind) -> Parsed {
    let below = match &kind {
        Kind::Literal(_) | Kind::Ident(_) => 0,
        Kind::Select { operand, .. } => operand.depth,
        Kind::Call { target, args, .. } => target.iter().map(|target| target.depth).chain(args.iter().map(|arg| arg.depth)).max().unwrap_or(0),
        Kind::List(items) => items.iter().map(|(item, _)| item.depth).max().unwrap_or(0),
        Kind::Map(entries) => entries.iter().map(|(key, value, _)| key.depth.max(value.depth)).max().unwrap_or(0),
        Kind::Struct(_, fields) => fields.iter().map(|(_, value, _)| value.depth).max().unwrap_or(0),
        Kind::Macro(m) => m.range.depth.max(m.body.depth).max(m.filter.as_ref().map_or(0, |filter| filter.depth)),
    };
    if below >= limits::DEPTH_MAX {
        return Err(Problem { at, message: format!("expression recursion limit exceeded: {}", limits::DEPTH_MAX) });
    }
    Ok(Expr { at, kind, id: 0, depth: below + 1 })
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }
    fn place(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }
    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }
    fn accept(&mut self, op: &str) -> bool {
        let found = matches!(self.peek(), Token::Op(found) if *found == op);
        self.at += usize::from(found);
        found
    }
    /// The next token as messages show it.
    fn shown(&self) -> String {
        match self.peek() {
            Token::End => "<EOF>".to_string(),
            Token::Ident(word) | Token::Quoted(word) => word.clone(),
            Token::Op(op) => op.to_string(),
            Token::Literal(Literal::String(text)) => format!("{text:?}"),
            Token::Literal(Literal::Int(n)) => n.to_string(),
            Token::Literal(Literal::Uint(n)) => format!("{n}u"),
            Token::Literal(Literal::Double(n)) => n.to_string(),
            Token::Literal(Literal::Bool(b)) => b.to_string(),
            Token::Literal(Literal::Null) => "null".into(),
            Token::Literal(Literal::Bytes(_)) => "bytes".into(),
        }
    }
    fn unexpected<T>(&self, expecting: &str) -> Result<T, Problem> {
        let shown = self.shown();
        let word = if expecting == "<EOF>" && !matches!(self.peek(), Token::End) { "extraneous" } else { "mismatched" };
        Err(Problem { at: self.place(), message: format!("Syntax error: {word} input '{shown}' expecting {expecting}") })
    }
    fn expect(&mut self, op: &str) -> Result<(), Problem> {
        if self.accept(op) { Ok(()) } else { self.unexpected(&format!("'{op}'")) }
    }

    fn expression(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > limits::NESTING_MAX {
            return Err(Problem { at: self.place(), message: format!("expression recursion limit exceeded: {}", limits::NESTING_MAX) });
        }
        let condition = self.binary(0)?;
        let at = self.place();
        let result = if self.accept("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expression()?;
            call(at, "_?_:_", vec![condition, yes, no])?
        } else {
            condition
        };
        self.depth -= 1;
        Ok(result)
    }

    fn binary(&mut self, level: usize) -> Parsed {
        const LEVELS: &[&[(&str, &str)]] = &[
            &[("||", "_||_")],
            &[("&&", "_&&_")],
            &[("==", "_==_"), ("!=", "_!=_"), ("<=", "_<=_"), (">=", "_>=_"), ("<", "_<_"), (">", "_>_"), ("in", "@in")],
            &[("+", "_+_"), ("-", "_-_")],
            &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        loop {
            let at = self.place();
            let found = operators.iter().find(|(op, _)| matches!(self.peek(), Token::Op(next) if next == op));
            let Some((_, function)) = found else { return Ok(left) };
            self.at += 1;
            let right = self.binary(level + 1)?;
            left = call(at, function, vec![left, right])?;
        }
    }

    fn unary(&mut self) -> Parsed {
        let at = self.place();
        for (op, function) in [("!", "!_"), ("-", "-_")] {
            let mut times = 0;
            while self.accept(op) {
                times += 1;
            }
            if times == 0 {
                continue;
            }
            if times % 2 == 0 {
                return self.member();
            }
            if op == "-" {
                match self.peek().clone() {
                    Token::Literal(Literal::Int(n)) => {
                        self.at += 1;
                        return self.suffixes(node(at, Kind::Literal(Literal::Int(-n)))?);
                    }
                    Token::Literal(Literal::Uint(n)) if n == 1 << 63 => {
                        self.at += 1;
                        return node(at, Kind::Literal(Literal::Int(i64::MIN)));
                    }
                    Token::Literal(Literal::Double(n)) => {
                        self.at += 1;
                        return self.suffixes(node(at, Kind::Literal(Literal::Double(-n)))?);
                    }
                    _ => {}
                }
            }
            let operand = self.member()?;
            return call(at, function, vec![operand]);
        }
        self.member()
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.suffixes(primary)
    }

    fn suffixes(&mut self, mut value: Expr) -> Parsed {
        loop {
            let at = self.place();
            if self.accept(".") {
                let optional = self.accept("?");
                let (name, quoted) = match self.next() {
                    Token::Ident(name) => (name, false),
                    Token::Quoted(name) => (name, true),
                    Token::Op("in") => ("in".to_string(), false),
                    _ => {
                        self.at -= 1;
                        let shown = if matches!(self.peek(), Token::End) { String::new() } else { self.shown() };
                        let message = format!("Syntax error: no viable alternative at input '.{shown}'");
                        return Err(Problem { at: self.place(), message });
                    }
                };
                let open = self.place();
                if !quoted && !optional && self.accept("(") {
                    let args = self.arguments(")")?;
                    value = member_call(value, open, name, args, self.libraries)?;
                } else {
                    value = node(at, Kind::Select { operand: Box::new(value), field: name, test: false, optional })?;
                }
            } else if self.accept("[") {
                let optional = self.accept("?");
                let index = self.expression()?;
                self.expect("]")?;
                value = call(at, if optional { "_[?_]" } else { "_[_]" }, vec![value, index])?;
            } else if matches!(self.peek(), Token::Op("{"))
                && let Some(name) = dotted(&value)
            {
                self.at += 1;
                value = node(at, Kind::Struct(name, self.fields()?))?;
            } else {
                return Ok(value);
            }
        }
    }

    fn fields(&mut self) -> Result<Vec<(String, Expr, bool)>, Problem> {
        let mut fields = vec![];
        while !self.accept("}") {
            let optional = self.accept("?");
            let (Token::Ident(name) | Token::Quoted(name)) = self.next() else {
                self.at -= 1;
                return self.unexpected("IDENTIFIER");
            };
            self.expect(":")?;
            fields.push((name, self.expression()?, optional));
            if !self.accept(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(fields)
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Expr>, Problem> {
        let mut args = vec![];
        while !self.accept(end) {
            args.push(self.expression()?);
            if !self.accept(",") {
                self.expect(end)?;
                break;
            }
        }
        Ok(args)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.place();
        match self.next() {
            Token::Literal(Literal::Uint(n)) if n == 1 << 63 && !matches!(self.tokens[self.at - 1].0, Token::Ident(_)) => {
                Err(Problem { at, message: "Syntax error: invalid int literal".into() })
            }
            Token::Literal(literal) => node(at, Kind::Literal(literal)),
            Token::Op("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Op("[") => {
                let mut items = vec![];
                while !self.accept("]") {
                    let optional = self.accept("?");
                    items.push((self.expression()?, optional));
                    if !self.accept(",") {
                        self.expect("]")?;
                        break;
                    }
                }
                node(at, Kind::List(items))
            }
            Token::Op("{") => {
                let mut entries = vec![];
                while !self.accept("}") {
                    let optional = self.accept("?");
                    let key = self.expression()?;
                    self.expect(":")?;
                    entries.push((key, self.expression()?, optional));
                    if !self.accept(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                node(at, Kind::Map(entries))
            }
            Token::Op(".") => match self.next() {
                Token::Ident(name) => self.named(at, name),
                _ => {
                    self.at -= 1;
                    self.unexpected("IDENTIFIER")
                }
            },
            Token::Ident(name) if RESERVED.contains(&name.as_str()) => {
                Err(Problem { at, message: format!("Syntax error: reserved identifier: {name}") })
            }
            Token::Ident(name) => self.named(at, name),
            _ => {
                self.at -= 1;
                self.unexpected(OPERANDS)
            }
        }
    }

    fn named(&mut self, at: usize, name: String) -> Parsed {
        let open = self.place();
        if self.accept("(") {
            let mut args = self.arguments(")")?;
            if name == "has" && args.len() == 1 {
                return match args.remove(0) {
                    Expr { kind: Kind::Select { operand, field, optional: false, .. }, .. } => {
                        node(open, Kind::Select { operand, field, test: true, optional: false })
                    }
                    other => Err(Problem { at: other.at, message: "invalid argument to has() macro".into() }),
                };
            }
            return call(open, &name, args);
        }
        node(at, Kind::Ident(name))
    }
}

/// `a.b.c` as one name, if it is only names.
pub fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { operand, field, test: false, optional: false } => Some(format!("{}.{field}", dotted(operand)?)),
        _ => None,
    }
}

fn member_call(target: Expr, at: usize, name: String, mut args: Vec<Expr>, libraries: Libraries) -> Parsed {
    let is_bind = libraries.bindings && name == "bind" && args.len() == 3 && dotted(&target).as_deref() == Some("cel");
    let macro_name = match (name.as_str(), args.len()) {
        _ if is_bind => Some(MacroName::Bind),
        ("all", 2 | 3) => Some(MacroName::All),
        ("exists", 2 | 3) => Some(MacroName::Exists),
        ("exists_one" | "existsOne", 2 | 3) => Some(MacroName::ExistsOne),
        ("map", 2 | 3) => Some(MacroName::Map),
        ("filter", 2) => Some(MacroName::Filter),
        ("transformList", 3 | 4) => Some(MacroName::TransformList),
        ("transformMap", 3 | 4) => Some(MacroName::TransformMap),
        ("transformMapEntry", 3 | 4) => Some(MacroName::TransformMapEntry),
        ("sortBy", 2) => Some(MacroName::SortBy),
        ("optMap", 2) => Some(MacroName::OptMap),
        ("optFlatMap", 2) => Some(MacroName::OptFlatMap),
        _ => None,
    };
    let Some(macro_name) = macro_name else {
        return node(at, Kind::Call { target: Some(Box::new(target)), function: name, args });
    };
    let variable = |expr: &Expr| match &expr.kind {
        Kind::Ident(name) => Ok(name.clone()),
        _ => Err(Problem {
            at: expr.at,
            message: match macro_name {
                MacroName::Map | MacroName::Filter | MacroName::SortBy => "argument is not an identifier".into(),
                MacroName::Bind => "cel.bind() variable names must be simple identifiers".into(),
                MacroName::OptMap | MacroName::OptFlatMap => format!("{name}() variable name must be a simple identifier"),
                _ => "argument must be a simple name".into(),
            },
        }),
    };
    if is_bind {
        let body = args.remove(2);
        let bound = args.remove(1);
        let macro_ = Macro { name: MacroName::Bind, range: bound, variable: variable(&args[0])?, second: None, filter: None, body };
        return node(at, Kind::Macro(Box::new(macro_)));
    }
    let two = matches!(macro_name, MacroName::TransformList | MacroName::TransformMap | MacroName::TransformMapEntry)
        || (args.len() == 3 && macro_name != MacroName::Map);
    let body = match args.pop() {
        Some(body) => body,
        None => return Err(Problem { at, message: "a macro without arguments".into() }),
    };
    let first = variable(&args[0])?;
    let second = if two { Some(variable(&args[1])?) } else { None };
    let filter = args.into_iter().nth(if two { 2 } else { 1 });
    let macro_ = Macro { name: macro_name, range: target, variable: first, second, filter, body };
    node(at, Kind::Macro(Box::new(macro_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_look_like_those_of_cel_go() {
        let shown = |source: &str| parse(source).unwrap_err().iter().map(|problem| problem.shown(source)).collect::<Vec<_>>();
        assert_eq!(
            shown("a | b"),
            [
                "ERROR: <input>:1:3: Syntax error: token recognition error at: '| '\n | a | b\n | ..^",
                "ERROR: <input>:1:5: Syntax error: extraneous input 'b' expecting <EOF>\n | a | b\n | ....^"
            ]
        );
        let problem = parse("self >").unwrap_err().remove(0);
        assert_eq!(
            problem.shown("self >"),
            "ERROR: <input>:1:7: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | self >\n | ......^"
        );
    }

    #[test]
    fn objects_of_nested_types_are_built() {
        let tree = parse("Object{spec: Object.spec{template: Object.spec.template{n: 1}}}").unwrap();
        let Kind::Struct(name, fields) = &tree.kind else { panic!("{tree:?}") };
        assert_eq!((name.as_str(), fields[0].0.as_str()), ("Object", "spec"));
        let Kind::Struct(name, fields) = &fields[0].1.kind else { panic!("{fields:?}") };
        assert_eq!((name.as_str(), fields[0].0.as_str()), ("Object.spec", "template"));
        assert!(matches!(&fields[0].1.kind, Kind::Struct(name, _) if name == "Object.spec.template"));
        for text in ["a.b(){n: 1}", "Object{1: 2}", "Object{n 1}", "Object{n: 1", "'Object'{n: 1}"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn odd_texts_are_refused_and_nothing_panics() {
        for text in
            ["", "(", "a.", "a..b", "[1,", "{1:", "'x", "1 +", "a ? b", "has(a)", "x.all(1, true)", "\u{1F600}", "if", "9223372036854775808", "a b"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&"(".repeat(100_000)).is_err());
        assert!(parse(&format!("{}1", "1+".repeat(20_000))).is_err());
        for text in [
            "-9223372036854775808",
            "a.b[0].c('x', r'\\d').d",
            "[1, 2u, 3.5, b'x', \"\\u00e9\"]",
            "{'a': 1}.?b.orValue(2)",
            "x.all(y, y > 1) || !!z",
            "a in [1] ? 1 : 2",
            "Object{spec: Object.spec{n: 1, ?o: optional.none(),}}",
        ] {
            assert!(parse(text).is_ok(), "{text:?} {:?}", parse(text));
        }
    }
}
