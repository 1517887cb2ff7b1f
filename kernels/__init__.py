"""Operations of the engine, each with a reference in torch; empty until the first op lands."""
