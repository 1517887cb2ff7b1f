"""Questions to the outside: verdicts on a row's thinking that come from elsewhere, while decoding goes on."""
