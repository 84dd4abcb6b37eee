"""How good are a model's replies: public measures, a judge, people."""
