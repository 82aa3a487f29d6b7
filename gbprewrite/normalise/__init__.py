"""Any model becomes one dialect: one spelling, one order, opset 18 or later."""
