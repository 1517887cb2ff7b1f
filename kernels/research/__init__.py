"""Operations of papers that nothing here depends on, exact and measured."""
