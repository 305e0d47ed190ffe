#include "textflag.h"

// func cloneVM(trap, a1, a2, a3, run uintptr, c *child) (pid, errno uintptr)
//
// The child starts behind SYSCALL on the stack it was given, with nothing on it: it finds run and c in registers, which the
// kernel keeps, and never returns. run is called as compiled Go calls (first argument in AX, X15 zero), because the wrapper
// for calls from assembly belongs to the race detector in a build with it.
TEXT ·cloneVM(SB), NOSPLIT, $16-64
	MOVQ a1+8(FP), DI
	MOVQ a2+16(FP), SI
	MOVQ a3+24(FP), DX
	MOVQ run+32(FP), R13
	MOVQ c+40(FP), R12
	XORL R10, R10
	XORL R8, R8
	MOVQ trap+0(FP), AX
	SYSCALL
	TESTQ AX, AX
	JZ   child
	CMPQ AX, $0xfffffffffffff001
	JLS  parent
	NEGQ AX
	MOVQ $-1, pid+48(FP)
	MOVQ AX, errno+56(FP)
	RET
parent:
	MOVQ AX, pid+48(FP)
	MOVQ $0, errno+56(FP)
	RET
child:
	XORL BP, BP
	XORPS X15, X15
	MOVQ R12, AX
	CALL R13
	INT  $3
