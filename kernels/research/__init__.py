"""Operations from papers that nothing else in the package uses: exact, tested and measured."""
