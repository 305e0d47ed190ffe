#include "textflag.h"

// func entry()
//
// The kernel begins here (execve(2)), with argc, argv and envp on the stack. Executed as "last" we go without Go's runtime;
// that is compiled Go, called with its argument in AX and X15 zero.
TEXT ·entry(SB), NOSPLIT|NOFRAME, $0
	MOVQ 0(SP), AX
	TESTQ AX, AX
	JZ   runtime
	MOVQ 8(SP), BX
	CMPL (BX), $0x7473616c // "last"
	JNE  runtime
	CMPB 4(BX), $0
	JNE  runtime
	MOVQ SP, AX
	XORPS X15, X15
	MOVQ ·lastAddress(SB), DX
	MOVQ (DX), R13
	CALL R13
	INT  $3
runtime:
	JMP  _rt0_amd64_linux(SB)
