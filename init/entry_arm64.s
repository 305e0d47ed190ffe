#include "textflag.h"

// func entry()
//
// As entry_amd64.s has it; the argument of compiled Go is in R0.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVD 0(RSP), R1
	CBZ  R1, runtime
	MOVD 8(RSP), R2
	MOVWU (R2), R3
	MOVD $0x7473616c, R4 // "last"
	CMPW R4, R3
	BNE  runtime
	MOVBU 4(R2), R3
	CBNZ R3, runtime
	MOVD RSP, R0
	MOVD ·lastAddress(SB), R26
	MOVD (R26), R1
	CALL (R1)
	BRK  $0
runtime:
	JMP  _rt0_arm64_linux(SB)
