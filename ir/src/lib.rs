//! What an adapter model means: types, ops, graphs, their text forms and their reference meaning
