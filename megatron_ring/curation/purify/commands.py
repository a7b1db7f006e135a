"""Names of LaTeX commands: those that KaTeX 0.16 knows, and usual ones of amsmath, siunitx, mhchem.

A command that is not here counts as misspelt; `latex.commands` of the stage adds more.
"""

COMMANDS = frozenset(
    """
AA AE Alpha And Bbb Bbbk Beta Big Bigg Biggl Biggm Biggr Bigl Bigm Bigr Box Bra Braket Bumpeq Cap
Chi Colonapprox Coloneq Coloneqq Colonsim Complex Cup DOTSB DOTSI DOTSX Dagger Darr
DeclareMathOperator Delta Diamond Doteq Downarrow Epsilon Eqcolon Eqqcolon Eta Finv Game Gamma H
Harr Huge Im Iota Join Kappa Ket L LARGE LaTeX Lambda Large Larr Leftarrow Leftrightarrow
Lleftarrow Longleftarrow Longleftrightarrow Longrightarrow Lrarr Lsh Mu N Nu O OE Omega Omicron
Overrightarrow P Phi Pi Pr Psi R Rarr Re Reals Relbar Rho Rightarrow Rrightarrow Rsh S SI SIrange
Set Sigma Subset Supset Tau TeX TextOrMath Theta Tr Uarr Uparrow Updelta Updownarrow Upomega
Upsigma Upsilon Vdash Vert Vvdash Xi Z Zeta aa above abs acute adj adots ae alef alefsym aleph
allowbreak alpha amalg ang angl angle angln angstrom approx approxcolon approxcoloncolon approxeq
arc arccos arccot arccsc arcctg arcosh arcsec arcsin arctan arctg arg argmax argmin arraycolsep
arrayrulewidth arraystretch arsinh artanh ast asymp atop b backepsilon backprime backsim backsimeq
backslash bar barwedge bcancel because begin begingroup beta beth between bf bfseries bgroup big
bigcap bigcirc bigcircle bigcup bigg biggl biggm biggr bigl bigm bigodot bigoplus bigotimes bigr
bigskip bigsqcup bigstar bigstrut bigtriangledown bigtriangleup biguplus bigvee bigwedge binom
blacklozenge blacksquare blacktriangle blacktriangledown blacktriangleleft blacktriangleright bm
bmod bold boldsymbol bordermatrix bot bowtie boxdot boxed boxminus boxplus boxtimes bra brace
brack braket breve bull bullet bumpeq c cal cancel cancelto cap caption cases cdot cdotp cdots ce
celsius centerdot centerline leftline rightline centering cfrac ch char check checkmark chi choose
circ circeq circlearrowleft circlearrowright circledR circledS circledast circledcirc circleddash
cite clap cline clubs clubsuit cmark colon colonapprox coloncolon coloncolonapprox
coloncolonequals coloncolonminus coloncolonsim coloneq coloneqq colonequals colonminus colonsim
color colorbox complement cong coprod copyright cos cosec cosh cot cotg coth cov cr crcr csc csch
ctg cth cup curlyeqprec curlyeqsucc curlyvee curlywedge curvearrowleft curvearrowright d dArr dag
dagger daleth darr dashleftarrow dashrightarrow dashv dbinom dblcolon dd ddag ddagger ddddot dddot
ddot ddots def definecolor deg degree delta derivative det dfrac diag diagdown diagup diamond
diamonds diamondsuit digamma dim displaylimits displaylines displaystyle div divideontimes dot
doteq doteqdot dotfill dotplus dots dotsb dotsc dotsi dotsm dotso dotsx doublebarwedge doublecap
doublecup downarrow downdownarrows downharpoonleft downharpoonright dv edef egroup ell emph empty
emptyset enclose end endgroup enskip enspace ensuremath epsilon eqalign eqalignno eqcirc eqcolon
eqqcolon eqref eqsim eqslantgtr eqslantless equalscolon equalscoloncolon equiv eta eth exists exp
expandafter fallingdotseq fbox fcolorbox flat footnote footnotesize forall frac frak framebox
frown futurelet gamma gcd gdef ge genfrac geq geqq geqslant gets gg ggg gggtr gimel global
gnapprox gneq gneqq gnsim grave gt gtrapprox gtrdot gtreqless gtreqqless gtrless gtrsim gvertneqq
hArr harr hat hbar hbox hdashline hdotsfor hearts heartsuit hfill hline hom hookleftarrow
hookrightarrow hphantom href hrulefill hskip hslash hspace huge i iddots idotsint iff iiiint iiint
iint image imath impliedby implies in includegraphics inf infin infty injlim int intercal
interleave intertext intop iota ip isin it item itshape j jmath k kappa ker kern ket kilogram l
lArr lBrace lVert label lambda land lang langle large larr lbrace lbrack lceil lcm ldotp ldots le
leadsto left leftarrow leftarrowtail leftharpoondown leftharpoonup leftleftarrows leftrightarrow
leftrightarrows leftrightharpoons leftrightsquigarrow leftthreetimes leq leqq leqslant lessapprox
lessdot lesseqgtr lesseqqgtr lessgtr lesssim let lfloor lg lgroup lhd lightning lim liminf limits
limsup linebreak linewidth ll llap llbracket llcorner lll llless lmoustache ln lnapprox lneq lneqq
lnot lnsim log long longdiv longleftarrow longleftrightarrow longmapsto longrightarrow
looparrowleft looparrowright lor lozenge lparen lq lrArr lrarr lrcorner lt ltimes lvert lvertneqq
makebox maltese mapsto mathbb mathbbm mathbf mathbin mathcal mathchoice mathclap mathclose mathds
mathellipsis mathfrak mathinner mathit mathllap mathnormal mathop mathopen mathord mathpunct
mathrel mathring mathrlap mathrm mathscr mathsf mathsfit mathsterling mathstrut mathtt matrix max
mbox measuredangle medskip medspace meter metre mho micro mid middle min minipage minuscolon
minuscoloncolon minuso mit mkern mod models mp mskip mu multicolumn multimap multirow multlinegap
nLeftarrow nLeftrightarrow nRightarrow nVDash nVdash nabla natural ncong ne nearrow neg
negmedspace negthickspace negthinspace neq newcommand newline newpage nexists ngeq ngeqq ngeqslant
ngtr ni nicefrac nleftarrow nleftrightarrow nleq nleqq nleqslant nless nmid nobreak nobreakspace
noexpand noindent nolimits nonumber norm normalsize not notag notin notni nparallel nprec npreceq
nrightarrow nshortmid nshortparallel nsim nsubseteq nsubseteqq nsucc nsucceq nsupseteq nsupseteqq
ntriangleleft ntrianglelefteq ntriangleright ntrianglerighteq nu num numrange nvDash nvdash
nwarrow o odot odv oe of ohm oiiint oiint oint ointctrclockwise omega omicron ominus openup
operatorname operatornamewithlimits oplus oslash otimes over overarc overbrace overbracket
overgroup overleftarrow overleftharpoon overleftrightarrow overline overlinesegment overparen
overrightarrow overrightharpoon overset owns pagebreak pagecolor par parallel parallelogram parbox
partial pdv per perp phantom phase phi pi pitchfork plim plusmn pm pmatrix pmb pmod pod pounds
prec precapprox preccurlyeq preceq precnapprox precneqq precnsim precsim prescript prime prod
projlim proof propto providecommand psi pu qed qedhere qquad qty quad r rArr rBrace rVert raisebox
rang rangle rank rarr ratio rbrace rbrack rceil real reals ref relax relbar renewcommand resizebox
restriction rfloor rgroup rhd rho right rightarrow rightarrowtail rightharpoondown rightharpoonup
rightleftarrows rightleftharpoons rightrightarrows rightsquigarrow rightthreetimes risingdotseq
rlap rm rmoustache root rotatebox rparen rq rrbracket rtimes rule rvert sc scalebox
scriptscriptstyle scriptsize scriptstyle sdot searrow sec sech second sect set setlength setminus
sf sfrac sgn sh sharp shortintertext shortmid shortparallel si sideset sigma sim simcolon
simcoloncolon simeq sin sinh sixptsize sl small smallfrown smallint smallsetminus smallskip
smallsmile smash smile sout space spades spadesuit span sphericalangle sqcap sqcup sqrt sqsubset
sqsubseteq sqsupset sqsupseteq square ss stackrel star strut subset subseteq subseteqq subsetneq
subsetneqq substack succ succapprox succcurlyeq succeq succnapprox succneqq succnsim succsim sum
sup supset supseteq supseteqq supsetneq supsetneqq surd swarrow t tabcolsep tabularnewline tag tan
tanh tau tbinom text textasciicircum textasciitilde textbackslash textbar textbardbl textbf
textbraceleft textbraceright textcelsius textcircled textcolor textcopyright textdagger
textdaggerdbl textdegree textdollar textellipsis textemdash textendash textgreater textit textless
textmd textmu textnormal textquotedblleft textquotedblright textquoteleft textquoteright
textquotesingle textregistered textrm textsc textsf textsterling textstyle texttt textunderscore
textup textwidth tfrac tg th therefore theta thetasym thickapprox thicksim thickspace thinspace
tilde times tiny tmspace to top tr triangle triangledown triangleleft trianglelefteq triangleq
triangleright trianglerighteq tt twoheadleftarrow twoheadrightarrow u uArr uarr ulcorner underbar
underbrace underbracket undergroup underleftarrow underleftrightarrow underline underlinesegment
underparen underrightarrow underset undertilde unit unlhd unrhd up upalpha uparrow upbeta upchi
updelta updownarrow upepsilon upgamma upharpoonleft upharpoonright uplambda uplus upmu upnu
upomega upphi uppi uppsi uprho upsigma upsilon uptau uptheta upuparrows urcorner url utilde v
vDash var varDelta varGamma varLambda varOmega varPhi varPi varPsi varSigma varTheta varUpsilon
varXi varepsilon varinjlim varkappa varliminf varlimsup varnothing varointclockwise varparallel
varphi varpi varprojlim varpropto varrho varsigma varsubsetneq varsubsetneqq varsupsetneq
varsupsetneqq vartheta vartriangle vartriangleleft vartriangleright varvdots vbox vcentcolon
vcenter vdash vdots vec vee veebar verb vert vfill vphantom vskip vspace wedge weierp widearc
widecheck widehat wideparen widetilde wp wr x xLeftarrow xLeftrightarrow xRightarrow xcancel xdef
xhookleftarrow xhookrightarrow xi xleftarrow xleftequilibrium xleftharpoondown xleftharpoonup
xleftrightarrow xleftrightharpoons xlongequal xmapsto xmark xrightarrow xrightequilibrium
xrightharpoondown xrightharpoonup xrightleftarrows xrightleftharpoons xtofrom xtwoheadleftarrow
xtwoheadrightarrow yen zeta
""".split()
)
