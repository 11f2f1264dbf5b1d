"""The syntax that this tool knows: node types of libcst, by name, since an older libcst lacks some of them."""

KNOWN = frozenset(
    """
    Add AddAssign And AnnAssign Annotation Arg AsName Assert Assign AssignEqual AssignTarget Asynchronous
    Attribute AugAssign Await BinaryOperation BitAnd BitAndAssign BitInvert BitOr BitOrAssign BitXor
    BitXorAssign BooleanOperation Break Call ClassDef Colon Comma Comment CompFor CompIf Comparison
    ComparisonTarget ConcatenatedString Continue Decorator Del Dict DictComp DictElement Divide DivideAssign
    Dot Element Ellipsis Else EmptyLine Equal ExceptHandler ExceptStarHandler Expr Finally Float FloorDivide
    FloorDivideAssign For FormattedString FormattedStringExpression FormattedStringText From FunctionDef
    GeneratorExp Global GreaterThan GreaterThanEqual If IfExp Imaginary Import ImportAlias ImportFrom
    ImportStar In IndentedBlock Index Integer Is IsNot Lambda LazyImport LazyImportFrom LeftCurlyBrace
    LeftParen LeftShift LeftShiftAssign LeftSquareBracket LessThan LessThanEqual List ListComp Match MatchAs
    MatchCase MatchClass MatchKeywordElement MatchList MatchMapping MatchMappingElement MatchOr
    MatchOrElement MatchPattern MatchSequence MatchSequenceElement MatchSingleton MatchStar MatchTuple
    MatchValue MatrixMultiply MatrixMultiplyAssign Minus Module Modulo ModuloAssign Multiply MultiplyAssign
    Name NameItem NamedExpr Newline Nonlocal Not NotEqual NotIn Or Param ParamSlash ParamSpec ParamStar
    Parameters ParenthesizedWhitespace Pass Plus Power PowerAssign Raise Return RightCurlyBrace RightParen
    RightShift RightShiftAssign RightSquareBracket Semicolon Set SetComp SimpleStatementLine
    SimpleStatementSuite SimpleString SimpleWhitespace Slice StarredDictComp StarredDictElement
    StarredElement Subscript SubscriptElement Subtract SubtractAssign TemplatedString
    TemplatedStringExpression TemplatedStringText TrailingWhitespace Try TryStar Tuple TypeAlias TypeParam
    TypeParameters TypeVar TypeVarTuple UnaryOperation While With WithItem Yield
    """.split()
)
